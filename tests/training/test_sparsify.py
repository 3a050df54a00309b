"""Every sparsifier keeps the contract on every network; formulas against slow references."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import nets
import numpy as np
import pytest
import torch
from nets import same_state
from torch import Tensor, nn
from zoo import ZOO

from autoprune import FineTune, SupervisedTask
from autoprune.errors import AutopruneError
from autoprune.pruning.criteria import score_groups
from autoprune.pruning.evidence import collect
from autoprune.pruning.forward import call, map_tensors
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import Sparsify
from autoprune.training import shrinking
from autoprune.training.distill import Teacher
from autoprune.training.finetune import finetune, step_count
from autoprune.training.gates import (
    HIGH,
    L0_WEIGHT,
    LOW,
    Factors,
    Gated,
    HardConcrete,
    TargetedDropout,
    VariationalDropout,
    hard_concrete,
    kl_divergence,
    open_probability,
    settled_gate,
)
from autoprune.training.optimise import total_rate
from autoprune.training.regularise import (
    Channels,
    Regulariser,
    Scope,
    channels_of,
    joint_norm,
)
from autoprune.training.shrinking import (
    L1,
    BatchNormL1,
    GroupLasso,
    GrowingL2,
    emphasis,
    group_shrinkage,
    soft_threshold,
)
from autoprune.training.sparsify import SPARSIFIERS, get_sparsifier, sparsifier, sparsify

IMAGES = ["conv_bn", "residual", "depthwise", "dense", "flatten", "autoencoder", "squeeze_excite"]
OTHERS = ["mlp", "conv1d", "layer_norm", "two_inputs", "dict_input"]
FROM_THE_ZOO = ["lstm", "gru", "attention", "tied_layers", "used_twice"]
ARCHITECTURES = [*IMAGES, *OTHERS, *FROM_THE_ZOO]
SETTINGS = FineTune(epochs=6, lr=3e-3, batch_size=16, distill_weight=0.5, dropout=0.0)


def noise(example: Any, samples: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return map_tensors(lambda t: torch.randn((samples, *t.shape[1:]), generator=generator), example)


class Setup:
    """A network, its groups, and the task to go on giving the outputs that it gives."""

    def __init__(self, name: str) -> None:
        if name in FROM_THE_ZOO:
            self.model, self.example = ZOO[name].build(), ZOO[name].example
        else:
            self.model, self.example = nets.build(name)
        self.grouping = find_groups(self.model, self.example)
        with torch.no_grad():
            inputs = [noise(self.example, samples, seed) for samples, seed in ((64, 1), (32, 2))]
            train, valid = [(x, call(self.model, x)) for x in inputs]
        self.task = SupervisedTask(
            train=train,
            valid=valid,
            loss="mse",
            scorer=lambda o, t: float(-(o - t).square().mean()),
        )

    def doomed(self) -> dict[str, list[int]]:
        """Return the weaker half of each group's channels."""
        return {
            name: norms.argsort(stable=True)[: len(norms) // 2].tolist()
            for name, norms in norms_of(self.model, self.grouping).items()
        }

    def trained(self, method: str | None, strength: float = 1.0, seed: int = 0) -> nn.Module:
        """Return a copy that is trained by a sparsifier, or plainly."""
        model = copy.deepcopy(self.model)
        teacher = Teacher(copy.deepcopy(self.model), self.task)
        training = (
            finetune(model, self.task, SETTINGS, teacher=teacher, seed=seed)
            if method is None
            else sparsify(
                model,
                self.task,
                SETTINGS,
                Sparsify(method=method, epochs=SETTINGS.epochs, strength=strength),
                grouping=self.grouping,
                doomed=self.doomed(),
                teacher=teacher,
                seed=seed,
            )
        )
        self.epochs = list(training)
        assert same_state(teacher._model.state_dict(), self.model.state_dict())
        return model

    def scope(self, model: nn.Module, **changes: Any) -> Scope:
        steps = step_count(self.task, SETTINGS)
        given: dict[str, Any] = {
            "groups": channels_of(model, self.grouping, doomed=self.doomed()),
            "steps": steps,
            "total_lr": total_rate(SETTINGS, steps),
            "strength": 1.0,
            "stake": 1.0,
            "generator": torch.Generator().manual_seed(0),
        }
        return Scope(**(given | changes))


@cache
def setup(name: str) -> Setup:
    return Setup(name)


@cache
def plain(name: str) -> nn.Module:
    return setup(name).trained(None)


def norms_of(model: nn.Module, grouping: Grouping) -> dict[str, Tensor]:
    return score_groups("l2", collect(model, grouping), grouping)


def weak_share(model: nn.Module, grouping: Grouping) -> float:
    """Return what share of the channels' norms the weaker half of each group has, on average."""
    shares = [
        float(norms.sort().values[: len(norms) // 2].sum() / norms.sum())
        for norms in norms_of(model, grouping).values()
    ]
    return sum(shares) / len(shares)


# --- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", SPARSIFIERS)
def test_channels_are_driven_to_zero_and_the_model_is_plain_again(method: str, name: str) -> None:
    made = setup(name)
    assert made.grouping.groups
    before = copy.deepcopy(made.model.state_dict())
    model = made.trained(method)
    assert same_state(made.model.state_dict(), before)
    assert [e.epoch for e in made.epochs] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(e.loss) and math.isfinite(e.valid) for e in made.epochs)
    assert made.epochs[-1].valid == made.task.evaluate(model, "valid")  # it is what was scored
    state = model.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in before.items()}
    assert all(bool(torch.isfinite(t).all()) for t in state.values())
    assert not same_state(state, before)
    for module in model.modules():
        assert not hasattr(module, "parametrizations")
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert type(module).__module__ != "torch.nn.utils.parametrize"
    assert list(map(type, model.modules())) == list(map(type, made.model.modules()))
    assert weak_share(model, made.grouping) < 0.98 * weak_share(plain(name), made.grouping)


@pytest.mark.parametrize("name", ["residual", "lstm", "mlp"])
@pytest.mark.parametrize("method", SPARSIFIERS)
def test_no_strength_is_fine_tuning(method: str, name: str) -> None:
    assert same_state(setup(name).trained(method, 0.0).state_dict(), plain(name).state_dict())


@pytest.mark.parametrize(
    "method", ["l1", "group_lasso", "l2", "bn_l1", "targeted_dropout"]
)  # gates and noise are there whatever their penalty weighs
def test_hardly_any_strength_is_nearly_fine_tuning(method: str) -> None:
    state = setup("mlp").trained(method, 1e-9).state_dict()
    for name, expected in plain("mlp").state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-6)


def test_penalties_are_scaled_by_what_is_at_stake() -> None:
    """The same task in other units asks for the same gates."""
    made, gates = setup("mlp"), []
    for unit in (1.0, 1_000.0):
        task = Scaled(made.task, unit)
        model = copy.deepcopy(made.model)
        chosen = Sparsify(method="hard_concrete", epochs=6)
        list(sparsify(model, task, SETTINGS, chosen, grouping=made.grouping))
        gates.append(norms_of(model, made.grouping)["0"])
    torch.testing.assert_close(gates[0], gates[1], rtol=1e-2, atol=1e-3)


class Scaled:
    """A task whose loss is in other units."""

    def __init__(self, task: SupervisedTask, unit: float) -> None:
        self.metric, self.higher_is_better = task.metric, True
        self.batches, self.distance, self.evaluate = task.batches, task.distance, task.evaluate
        self.task, self.unit = task, unit

    def step(self, model: nn.Module, batch: Any) -> Any:
        loss, outputs = self.task.step(model, batch)
        return self.unit * loss, outputs


@pytest.mark.parametrize("method", ["hard_concrete", "variational_dropout"])
def test_some_channel_always_stays_open(method: str) -> None:
    made = setup("mlp")
    model = made.trained(method, 1_000.0)
    x = noise(made.example, 8, 3)
    with torch.no_grad():
        assert float(model(x).std(0).min()) > 0  # it still looks at its inputs


@pytest.mark.parametrize("method", SPARSIFIERS)
def test_more_strength_drives_further(method: str) -> None:
    made = setup("conv_bn")
    shares = [weak_share(made.trained(method, strength), made.grouping) for strength in (0.1, 0.8)]
    assert shares[1] < shares[0]


@pytest.mark.parametrize("method", SPARSIFIERS)
def test_a_seed_decides_everything(method: str) -> None:
    made = setup("residual")
    torch.manual_seed(17)
    first = made.trained(method, seed=3).state_dict()
    torch.manual_seed(99)
    assert same_state(made.trained(method, seed=3).state_dict(), first)
    assert not same_state(made.trained(method, seed=4).state_dict(), first)


@pytest.mark.parametrize("method", SPARSIFIERS)
def test_frozen_parameters_stay(method: str) -> None:
    made = setup("mlp")
    model = copy.deepcopy(made.model)
    model[2].weight.requires_grad_(False)
    frozen = model[2].weight.clone()
    chosen = Sparsify(method=method, epochs=2)
    list(sparsify(model, made.task, SETTINGS, chosen, grouping=made.grouping, doomed=made.doomed()))
    assert torch.equal(model[2].weight, frozen)


def test_shared_parameters_stay_shared() -> None:
    for name in ("tied_layers", "used_twice"):
        made = setup(name)
        names = {id(p): n for n, p in made.model.named_parameters()}
        for method in SPARSIFIERS:
            assert len(list(made.trained(method).parameters())) == len(names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", SPARSIFIERS)
def test_on_a_gpu(method: str) -> None:
    made = setup("residual")
    model = copy.deepcopy(made.model).cuda()
    chosen = Sparsify(method=method, epochs=2)
    list(sparsify(model, made.task, SETTINGS, chosen, grouping=made.grouping, doomed=made.doomed()))
    assert all(p.is_cuda for p in model.parameters())


def test_what_is_made_is_on_the_models_device() -> None:
    """The meta device refuses every mix with another one; no GPU is needed to see that."""
    made = setup("residual")
    model = copy.deepcopy(made.model).to("meta")
    for group in channels_of(model, made.grouping):
        assert group.full(1.0).is_meta
        assert joint_norm(group.parts).is_meta
        assert all(part.spread(group.full(1.0)).is_meta for part in group.parts)


# --- the registry -------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(SPARSIFIERS)
    yield
    SPARSIFIERS.clear()
    SPARSIFIERS.update(before)


def test_there_is_one_of_each_kind() -> None:
    targeted = {"l2", "targeted_dropout"}
    assert set(SPARSIFIERS) == targeted | {
        "l1", "group_lasso", "bn_l1", "variational_dropout", "hard_concrete",
    }  # fmt: skip
    assert {name for name, one in SPARSIFIERS.items() if one.needs_targets} == targeted


def test_unknown_sparsifiers_are_refused() -> None:
    with pytest.raises(AutopruneError, match=r"sparsifier 'grop_lasso'.*mean 'group_lasso'"):
        get_sparsifier("grop_lasso")


@pytest.mark.usefixtures("registry")
def test_users_add_sparsifiers() -> None:
    @sparsifier("halve", needs_targets=True)
    class Halve(Regulariser):
        def __init__(self, scope: Scope) -> None:
            self.scope = scope

        def finish(self) -> None:
            for group in self.scope.groups:
                factor = group.full(1.0)
                factor[list(group.doomed)] = 0.5
                for part in group.kernels:
                    part.parameter.mul_(part.spread(factor))

    made = setup("mlp")
    model, expected = made.trained("halve"), copy.deepcopy(plain("mlp"))
    with torch.no_grad():
        for layer, name in ((expected[0], "0"), (expected[2], "2")):
            layer.weight[made.doomed()[name]] *= 0.5
    assert same_state(model.state_dict(), expected.state_dict())


# --- penalties in the loop ----------------------------------------------------------------------


def test_a_penalty_moves_weights_but_is_not_in_the_reported_loss() -> None:
    made = setup("mlp")

    class Ridge(Regulariser):
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def penalty(self) -> Tensor:
            return 100 * self.model[0].weight.square().sum()

    models = [copy.deepcopy(made.model) for _ in range(2)]
    settings = replace(SETTINGS, epochs=1, batch_size=64)  # one step
    losses = [
        [e.loss for e in finetune(model, made.task, settings, regulariser=extra)]
        for model, extra in zip(models, (None, Ridge(models[1])), strict=True)
    ]
    assert losses[0] == losses[1]
    assert models[1][0].weight.norm() < models[0][0].weight.norm()


def test_the_sum_of_the_learning_rates_is_that_of_the_schedule() -> None:
    made, rates = setup("mlp"), []

    class Listener(Regulariser):
        def after_step(self, lr: float) -> None:
            rates.append(lr)
            assert not torch.is_grad_enabled()

    list(finetune(copy.deepcopy(made.model), made.task, SETTINGS, regulariser=Listener()))
    assert len(rates) == step_count(made.task, SETTINGS) == 24
    assert sum(rates) == pytest.approx(total_rate(SETTINGS, 24))
    assert max(rates) <= SETTINGS.lr


# --- parts of tensors ---------------------------------------------------------------------------


def entries(model: nn.Module, grouping: Grouping, group: str, channel: int, role: str) -> Tensor:
    """Return all trainable numbers of a channel, slowly, slice by slice."""
    parameters = dict(model.named_parameters())
    found = [
        parameters[piece.tensor].index_select(piece.dim, torch.tensor([entry])).reshape(-1)
        for piece in grouping[group].slices
        if piece.role == role and piece.tensor in parameters
        for entry in piece.index[channel].tolist()
    ]
    return torch.cat(found).detach()


@pytest.mark.parametrize("name", ["residual", "flatten", "autoencoder", "lstm", "dense"])
def test_joint_norms_are_those_of_all_entries(name: str) -> None:
    made = setup(name)
    for group in channels_of(made.model, made.grouping):
        for parts, role in ((group.producers, "out"), (group.readers, "in")):
            for channel in range(group.count):
                expected = entries(made.model, made.grouping, group.name, channel, role)
                assert float(joint_norm(parts)[channel]) == pytest.approx(
                    float(expected.norm()), rel=1e-5
                )
                assert sum(part.numel() for part in parts) == expected.numel()


def test_groups_without_producers_are_measured_on_their_readers() -> None:
    made = setup("mlp")
    grouping = find_groups(made.model, made.example, prune_inputs=True)
    group = next(
        g for g in channels_of(made.model, grouping) if not g.producers
    )  # the model's inputs
    assert group.weights == group.readers
    for method in SPARSIFIERS:
        model = copy.deepcopy(made.model)
        chosen = Sparsify(method=method, epochs=3)
        doomed = {g.name: [0, 1] for g in grouping.groups}
        list(sparsify(model, made.task, SETTINGS, chosen, grouping=grouping, doomed=doomed))
        assert bool(torch.isfinite(model[0].weight).all())


# --- shrinking, against slow versions -----------------------------------------------------------


def test_soft_threshold_is_the_proximal_operator() -> None:
    grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    for weight in (-1.3, -0.2, 0.0, 0.4, 1.0):
        best = grid[(0.5 * (grid - weight).square() + 0.3 * grid.abs()).argmin()]
        found = soft_threshold(torch.tensor(weight), 0.3)
        assert float(found) == pytest.approx(float(best), abs=2e-4)


def test_group_shrinkage_is_the_proximal_operator() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0):
        vector = size * torch.randn(5, generator=generator)
        found = vector * group_shrinkage(vector.norm(), 0.4)

        def objective(x: Tensor, vector: Tensor = vector) -> Tensor:
            return 0.5 * (x - vector).square().sum() + 0.4 * x.norm()

        for _ in range(200):  # nothing near it is better
            step = 0.05 * torch.randn(5, generator=generator)
            assert objective(found) <= objective(found + step) + 1e-6
        assert bool((found == 0).all()) == (float(vector.norm()) <= 0.4)


def test_emphasis_spares_the_strong() -> None:
    found = emphasis(torch.tensor([1.0, 3.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 1 / 16, 1 / 4]))
    torch.testing.assert_close(emphasis(torch.ones(3)), torch.full((3,), 1 / 16))


def stepped(method: Any, made: Setup, lr: float) -> nn.Module:
    model = copy.deepcopy(made.model)
    with torch.no_grad():
        method(made.scope(model)).after_step(lr)
    return model


def test_a_step_of_l1() -> None:
    made, lr = setup("mlp"), 0.002
    model, total = stepped(L1, made, lr), made.scope(made.model).total_lr
    expected = copy.deepcopy(made.model)
    first, second, last = expected[0], expected[2], expected[5]
    with torch.no_grad():
        # in the order of the groups: producers and riders of channel c, then what reads it
        for layer, reader in ((first, second), (second, last)):
            source = made.model[0] if layer is first else made.model[2]
            share = emphasis(source.weight.norm(dim=1))
            origin = made.model[2] if reader is second else made.model[5]
            for tensor, dim, size in (
                (layer.weight, 0, source.weight),
                (layer.bias, 0, source.bias),
                (reader.weight, 1, origin.weight),
            ):
                typical = float(size.square().mean().sqrt())
                for channel in range(len(share)):
                    cells = tensor.select(dim, channel).view(-1) if tensor.dim() == 1 else None
                    limit = lr * shrinking.L1_REACH * typical / total * float(share[channel])
                    if cells is None:
                        cells = tensor.select(dim, channel)
                    cells.copy_(cells.sign() * (cells.abs() - limit).clamp_min(0))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["residual", "lstm"])
def test_a_step_of_group_lasso(name: str) -> None:
    made, lr = setup(name), 0.002
    model, total = stepped(GroupLasso, made, lr), made.scope(made.model).total_lr
    for group in made.grouping.groups:
        vectors = [
            entries(made.model, made.grouping, group.name, c, "out") for c in range(group.channels)
        ]
        norms = torch.stack([v.norm() for v in vectors])
        size = vectors[0].numel()
        typical = float(torch.cat(vectors).square().mean().sqrt())
        rates = shrinking.LASSO_REACH * typical * math.sqrt(size) / total * emphasis(norms)
        for channel, vector in enumerate(vectors):
            shrunk = vector * max(1 - lr * float(rates[channel]) / float(norms[channel]), 0)
            found = entries(model, made.grouping, group.name, channel, "out")
            if name != "lstm":  # whose recurrent weights are shrunk along both dimensions
                mine = [s for s in group.slices if s.role == "out"]
                assert len(mine) > 1  # several coupled tensors
                torch.testing.assert_close(found, shrunk)
            assert found.norm() <= shrunk.norm() * (1 + 1e-5)


def test_a_step_of_network_slimming_follows_gamma_alone() -> None:
    made, lr = setup("conv_bn"), 0.002
    model, total = stepped(BatchNormL1, made, lr), made.scope(made.model).total_lr
    for conv, norm in ((0, 1), (3, 4)):
        gamma = made.model[norm].weight.detach()
        typical = float(gamma.square().mean().sqrt())
        limit = lr * shrinking.GAMMA_REACH * typical / total * emphasis(gamma.abs())
        expected = soft_threshold(gamma, limit)
        torch.testing.assert_close(model[norm].weight.detach(), expected)
        factor = expected / gamma
        torch.testing.assert_close(model[norm].bias.detach(), made.model[norm].bias * factor)
        torch.testing.assert_close(
            model[conv].weight.detach(), made.model[conv].weight * factor[:, None, None, None]
        )


def test_slimming_without_batchnorm_is_group_lasso() -> None:
    made = setup("mlp")
    models = [stepped(method, made, 0.002) for method in (BatchNormL1, GroupLasso)]
    assert same_state(models[0].state_dict(), models[1].state_dict())


def test_growing_l2_fades_the_doomed_alone_and_grows() -> None:
    made = setup("mlp")
    model = copy.deepcopy(made.model)
    scope = made.scope(model, steps=50, total_lr=50 * 0.01)
    growing, norms = GrowingL2(scope), []
    doomed = made.doomed()["0"]
    with torch.no_grad():
        for _ in range(50):
            growing.after_step(0.01)
            norms.append(float(model[0].weight[doomed].norm()))
    first = float(made.model[0].weight[doomed].detach().norm())
    log = np.log([first, *norms])
    decays = -np.diff(log)
    assert bool((np.diff(decays) > 0).all())
    assert log[0] - log[-1] == pytest.approx(7.5, abs=0.6)
    kept = [c for c in range(12) if c not in doomed]
    assert torch.equal(model[0].weight[kept], made.model[0].weight[kept])
    assert torch.equal(model[0].bias[kept], made.model[0].bias[kept])
    untouched = [c for c in range(8) if c not in made.doomed()["2"]]
    columns = model[2].weight[untouched][:, kept]
    assert torch.equal(columns, made.model[2].weight[untouched][:, kept])


# --- gates --------------------------------------------------------------------------------------


class Fixed(Gated):
    """Gates on producers and readers that are parameters of their own."""

    def __init__(self, groups: tuple[Channels, ...]) -> None:
        super().__init__(groups)
        self.produce = [torch.rand(g.count).requires_grad_() for g in groups]
        self.read = [torch.rand(g.count).requires_grad_() for g in groups]

    def factors(self, *, settled: bool) -> list[Factors]:
        return list(zip(self.produce, self.read, strict=True))


def test_gradients_are_those_of_the_products() -> None:
    made = setup("mlp")
    model = copy.deepcopy(made.model)
    gates = Fixed(channels_of(model, made.grouping))
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 6)
    gates.before_step()
    model(x).square().sum().backward()
    gates.after_backward()
    assert same_state(model.state_dict(), before)
    (p0, p2), (r0, r2) = (
        [t.detach().clone().requires_grad_() for t in ts] for ts in (gates.produce, gates.read)
    )
    copied = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    w0 = copied["0.weight"] * p0[:, None]
    w2 = copied["2.weight"] * r0[None, :] * p2[:, None]
    w5 = copied["5.weight"] * r2[None, :]
    hidden = torch.relu(x @ w0.t() + copied["0.bias"])
    hidden = torch.tanh(hidden @ w2.t() + copied["2.bias"])
    (hidden @ w5.t() + copied["5.bias"]).square().sum().backward()
    for found, expected in zip([*gates.produce, *gates.read], [p0, p2, r0, r2], strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, copied[name].grad)


@pytest.mark.parametrize("name", ["lstm", "attention", "tied_layers", "used_twice", "residual"])
def test_gradients_of_gates_agree_with_differences(name: str) -> None:
    """Whatever module a tensor belongs to: attention and LSTM keep views of theirs."""
    made = setup(name)
    model = copy.deepcopy(made.model).double()
    gates = Fixed(channels_of(model, made.grouping))
    for part in (*gates.produce, *gates.read):
        part.data = part.data.double()
    x = noise(made.example, 4, 5).double()

    def loss() -> float:
        with gates.settled(), torch.no_grad():
            return float(call(model, x).square().sum())

    gates.before_step()
    call(model, x).square().sum().backward()
    gates.after_backward()
    for gate in (*gates.produce, *gates.read):
        if gate.grad is None:
            continue
        own = gate.grad[0].item()
        values = []
        for change in (1e-5, -1e-5):
            gate.data[0] += change
            values.append(loss())
            gate.data[0] -= change
        assert own == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-6)


def test_a_gate_on_readers_is_a_gate_on_the_channel() -> None:
    made = setup("conv_bn")
    model = copy.deepcopy(made.model)
    gate = torch.rand(8)

    class OnReaders(Gated):
        def factors(self, *, settled: bool) -> list[Factors]:
            return [(None, gate), (None, None)]

    OnReaders(channels_of(model, made.grouping)).finish()
    x = noise(made.example, 3, 1)
    with torch.no_grad():
        hidden = made.model[:3](x) * gate[:, None, None]
        torch.testing.assert_close(model(x), made.model[3:](hidden))


@pytest.mark.parametrize("kind", [HardConcrete, VariationalDropout, TargetedDropout])
@pytest.mark.parametrize("name", ["residual", "lstm"])
def test_what_is_folded_in_is_what_was_settled(kind: Any, name: str) -> None:
    made = setup(name)
    model = copy.deepcopy(made.model)
    gates = kind(made.scope(model))
    list(finetune(model, made.task, replace(SETTINGS, epochs=1), regulariser=Stepping(gates)))
    x = noise(made.example, 3, 1)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        with gates.settled():
            shown = model.eval()(x)
        assert same_state(model.state_dict(), before)
        bare = model(x)
        gates.finish()
        torch.testing.assert_close(model(x), shown, rtol=0, atol=0)
        assert not torch.allclose(bare, shown)


class Stepping(Regulariser):
    """Passes everything on but the end."""

    def __init__(self, inner: Gated) -> None:
        self.inner = inner
        self.trained, self.penalty = inner.trained, inner.penalty
        self.before_step, self.after_backward = inner.before_step, inner.after_backward
        self.after_step = inner.after_step


def test_hard_concrete_gates_are_open_as_often_as_expected() -> None:
    """Louizos et al. 2018, eq. 12: what the L0 penalty counts, against drawing many gates."""
    generator = torch.Generator().manual_seed(0)
    for log_alpha in (-3.0, -1.0, 0.0, 2.0):
        draws = torch.rand(200_000, generator=generator).clamp(1e-6, 1 - 1e-6)
        gates = hard_concrete(torch.tensor(log_alpha), draws)
        assert 0 <= float(gates.min()) <= float(gates.max()) <= 1
        share = float((gates > 0).float().mean())
        assert share == pytest.approx(float(open_probability(torch.tensor(log_alpha))), abs=0.005)
        logistic = math.log(0.3 / 0.7)
        stretched = 1 / (1 + math.exp(-(logistic + log_alpha) / (2 / 3))) * (HIGH - LOW) + LOW
        one = hard_concrete(torch.tensor(log_alpha), torch.tensor(0.3))
        assert float(one) == pytest.approx(min(max(stretched, 0), 1), abs=1e-6)


def test_settled_gates_close_and_open() -> None:
    found = settled_gate(torch.tensor([-6.0, 0.0, 6.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 1.0]))


def test_the_expected_number_of_open_gates_is_penalised() -> None:
    made = setup("mlp")
    model = copy.deepcopy(made.model)
    gates = HardConcrete(made.scope(model, strength=0.5, stake=3.0))
    expected = 0.0
    for own, group in zip(gates.trained()[0]["params"], gates.groups, strict=True):
        own.data.normal_()
        for log_alpha in own.tolist():
            probability = 1 / (1 + math.exp(-(log_alpha - 2 / 3 * math.log(0.1 / 1.1))))
            expected += 0.5 * 3.0 * L0_WEIGHT * probability / group.count
    assert float(gates.penalty().detach()) == pytest.approx(expected, rel=1e-5)


def test_the_divergence_is_that_of_the_posterior_from_a_log_uniform_prior() -> None:
    """KL = E log|eps| - log(alpha) / 2 + constant, eps ~ N(1, alpha), by quadrature."""

    def exact(log_alpha: float) -> float:
        sigma = math.exp(log_alpha / 2)
        z = np.linspace(-9, 9, 2_000_001) + 1e-9
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        logs = np.log(np.abs(1 + sigma * z))
        return float((density * logs).sum() * (z[1] - z[0]) - log_alpha / 2)

    limit = exact(12.0)  # the approximation goes to 0 there
    for log_alpha in (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 3.0):
        found = float(kl_divergence(torch.tensor(log_alpha)))
        assert found == pytest.approx(exact(log_alpha) - limit, abs=0.02)


def test_noise_has_the_posteriors_moments() -> None:
    made = setup("mlp")
    gates = VariationalDropout(made.scope(copy.deepcopy(made.model)))
    variances, means = (group["params"] for group in gates.trained())
    means[0].data.fill_(0.8)
    variances[0].data.fill_(math.log(0.09))
    draws = torch.stack([gates.factors(settled=False)[0][1].detach() for _ in range(4_000)])
    assert float(draws.mean()) == pytest.approx(0.8, abs=0.01)
    assert float(draws.std()) == pytest.approx(0.3, abs=0.01)
    produce, read = gates.factors(settled=True)[0]
    torch.testing.assert_close(read.detach(), torch.full((12,), 0.8))
    torch.testing.assert_close(produce, torch.full((12,), 1 / (1 + 0.09 / 0.64)))
    variances[0].data.fill_(math.log(0.64) + 3.5)  # log alpha over the limit
    assert int(gates.factors(settled=True)[0][1].count_nonzero()) == 1  # one always stays


def test_the_weakest_are_dropped_as_often_as_alpha_says() -> None:
    made = setup("mlp")
    gates = TargetedDropout(made.scope(copy.deepcopy(made.model), steps=40))
    doomed = made.doomed()["0"]  # the weaker half: what it finds itself
    for _ in range(12):  # of 20 that the rate rises
        gates.after_step(0.1)
    draws = torch.stack([gates.factors(settled=False)[0][1] for _ in range(4_000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    shares = draws.mean(0)
    for channel in range(12):
        expected = 0.4 if channel in doomed else 1.0
        assert float(shares[channel]) == pytest.approx(expected, abs=0.03)
    produce, read = gates.factors(settled=True)[0]
    torch.testing.assert_close(read[doomed], torch.full((len(doomed),), 0.4))
    assert torch.equal(produce, read)
