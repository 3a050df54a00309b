"""Every criterion keeps the contract; each is compared with a slow, obvious version of itself.

The references name a residual network's layers by hand, so that they do not believe the grouping.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, build, grouped, noise_like, same_state
from torch import Tensor, nn
from torch.func import functional_call

from autoprune.errors import AutopruneError
from autoprune.pruning import rows
from autoprune.pruning.criteria import APOZ_TIE, CRITERIA, criterion, get_criterion, score_groups
from autoprune.pruning.curvature import PROBES, hessian_diagonal, random_signs
from autoprune.pruning.evidence import Evidence, collect, top_channels
from autoprune.pruning.forward import call
from autoprune.pruning.groups import ChannelGroup, Grouping, Slice
from autoprune.pruning.obs import RIDGE

CONVS = {"stem": ["stem", "conv2"], "conv1": ["conv1"], "down": ["down", "shortcut"]}
NORMS = {"stem": ["bn", "bn2"], "conv1": ["bn1"], "down": ["down_bn"]}
BIASES = {"stem": [], "conv1": [], "down": ["shortcut"]}
READERS = {"stem": ["conv1", "down", "shortcut"], "conv1": ["conv2"], "down": ["head"]}


def mean_square(model: nn.Module, inputs: Any) -> Tensor:
    """A loss that is a mean over the batch of a loss of each sample."""
    return (call(model, inputs).flatten(1) - 0.3).square().sum(1).mean()


def calibration(name: str) -> list[Any]:
    """Three batches, the last one smaller."""
    torch.manual_seed(1)
    return [noise_like(NETS[name][1], samples) for samples in (4, 4, 3)]


@cache
def evidence_of(name: str) -> Evidence:
    model, _ = build(name)
    # The references look at every position.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "ROWS_PER_SAMPLE", 1_000)
        return collect(
            model,
            grouped(name),
            batches=calibration(name),
            loss=mean_square,
            curvature=True,
            moments=True,
            seed=3,
        )


def scores(name: str, net: str) -> dict[str, Tensor]:
    return score_groups(name, evidence_of(net), grouped(net))


# --- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", CRITERIA)
def test_one_finite_score_a_channel(name: str, net: str) -> None:
    found = scores(name, net)
    assert {n: tuple(s.shape) for n, s in found.items()} == {
        n: (count,) for n, count in grouped(net).channels.items()
    }
    for score in found.values():
        assert score.dtype == torch.float32
        assert torch.isfinite(score).all()
        assert (score >= 0).all() or name == "hessian"  # a loss may be concave
        assert len(score.unique()) > 1


@pytest.mark.parametrize("name", CRITERIA)
def test_the_same_evidence_gives_the_same_scores(name: str) -> None:
    again = evidence_of.__wrapped__("residual")
    for group, score in score_groups(name, again, grouped("residual")).items():
        assert torch.equal(score, scores(name, "residual")[group])


@pytest.mark.parametrize("name", [n for n, c in CRITERIA.items() if not c.needs_data])
def test_weights_alone_are_enough_where_no_data_are_needed(name: str) -> None:
    model, _ = build("residual")
    weights_only = collect(model, grouped("residual"), seed=3)
    for group, score in score_groups(name, weights_only, grouped("residual")).items():
        assert torch.equal(score, scores(name, "residual")[group])


@pytest.mark.parametrize("net", NETS)
def test_collecting_leaves_the_model_alone(net: str) -> None:
    model, _ = build(net)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    collect(
        model,
        grouped(net),
        batches=calibration(net),
        loss=mean_square,
        curvature=True,
        moments=True,
    )
    assert same_state(model.state_dict(), before)
    assert model.training
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


SCALED = {"l1": 2.0, "l2": 2.0, "bn": 2.0, "fpgm": 2.0}
"""How scores change when what produces a channel is doubled; those that see the whole model do
not change, as it computes the same once the readers are halved."""


# The noise of `hessian` comes from other entries of the matrix and scales otherwise.
@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"hessian"}))
def test_scale_moves_scores_only_where_weights_alone_count(name: str) -> None:
    model, _ = build("mlp")
    with torch.no_grad():  # ReLU lets a factor through
        model[0].weight.mul_(2)
        model[0].bias.mul_(2)
        model[2].weight.div_(2)
    evidence = collect(
        model,
        grouped("mlp"),
        batches=calibration("mlp"),
        loss=mean_square,
        moments=True,
        seed=3,
    )
    expected = scores(name, "mlp")["0"] * SCALED.get(name, 1.0)
    torch.testing.assert_close(score_groups(name, evidence, grouped("mlp"))["0"], expected)


# --- references ---------------------------------------------------------------------------------


def per_channel(group: str, value: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([value(c) for c in range(grouped("residual").channels[group])]).detach()


def filters(model: nn.Module, group: str, channel: int) -> list[Tensor]:
    return [model.get_submodule(n).weight[channel].flatten() for n in CONVS[group]]


def reference_l1(model: nn.Module, group: str) -> Tensor:
    return per_channel(group, lambda c: torch.cat(filters(model, group, c)).abs().sum())


def reference_l2(model: nn.Module, group: str) -> Tensor:
    return per_channel(group, lambda c: torch.cat(filters(model, group, c)).norm())


def reference_bn(model: nn.Module, group: str) -> Tensor:
    def scale(channel: int) -> Tensor:
        return sum(model.get_submodule(n).weight[channel].abs() for n in NORMS[group])

    return per_channel(group, scale)


def reference_fpgm(model: nn.Module, group: str) -> Tensor:
    count = grouped("residual").channels[group]

    def distances(channel: int) -> Tensor:
        own = filters(model, group, channel)
        total = torch.zeros(())
        for other in range(count):
            pairs = zip(own, filters(model, group, other), strict=True)
            total = total + sum((a - b).norm() for a, b in pairs)
        return total

    return per_channel(group, distances)


def coupled(model: nn.Module, group: str) -> list[nn.Parameter]:
    """Return every parameter that goes with the group's channels, channels first."""
    found = [model.get_submodule(n).weight for n in CONVS[group] + NORMS[group]]
    return found + [model.get_submodule(n).bias for n in NORMS[group] + BIASES[group]]


def gradients(model: nn.Module, inputs: Any, of: list[nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(mean_square(model, inputs), of))


def reference_gradient(model: nn.Module, group: str) -> Tensor:
    members = coupled(model, group)
    batches = [gradients(model, b, members) for b in calibration("residual")]
    means = [sum(parts) / len(parts) for parts in zip(*batches, strict=True)]
    return per_channel(
        group,
        lambda c: sum((g[c] * w[c]).abs().sum() for g, w in zip(means, members, strict=True)),
    )


def reference_taylor(model: nn.Module, group: str) -> Tensor:
    members = coupled(model, group)
    total = torch.zeros(grouped("residual").channels[group])
    for batch in calibration("residual"):
        parts = list(zip(gradients(model, batch, members), members, strict=True))
        joint = per_channel(group, lambda c, p=parts: sum((g[c] * w[c]).sum() for g, w in p))
        total += joint**2
    return total / 3


def reference_fisher(model: nn.Module, group: str) -> Tensor:
    samples = [x[None] for batch in calibration("residual") for x in batch]
    return gated_fisher(model, READERS[group], grouped("residual").channels[group], samples)


def gated_fisher(
    model: nn.Module, readers: list[str], channels: int, samples: list[Tensor], spread: int = 1
) -> Tensor:
    """Half the mean square of each gate's gradient; a gate governs `spread` entries in a row."""
    total = torch.zeros(channels)
    for sample in samples:
        gate = torch.ones(channels, requires_grad=True)

        def multiply(_: nn.Module, args: tuple[Tensor], gate: Tensor = gate) -> Tensor:
            x = args[0]
            entries = gate.repeat_interleave(spread)
            return x * entries.reshape(1, -1, *[1] * (x.dim() - 2))

        hooks = [model.get_submodule(n).register_forward_pre_hook(multiply) for n in readers]
        [slope] = torch.autograd.grad(mean_square(model, sample), gate)
        for hook in hooks:
            hook.remove()
        total += slope**2
    return total / len(samples) / 2


def reads(model: nn.Module, layer: str) -> Tensor:
    """Return what a layer reads over the whole calibration set, one row for each position."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, x, y: seen.append(x[0]))
    for batch in calibration("residual"):
        for sample in batch:
            model(sample[None])
    hook.remove()
    return torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in seen]).detach()


def over_readers(model: nn.Module, group: str, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum `value(weights that read the channel, the channel's values)` over the readers."""

    def total(channel: int) -> Tensor:
        return sum(
            value(model.get_submodule(n).weight[:, channel], reads(model, n)[:, channel])
            for n in READERS[group]
        )

    return per_channel(group, total)


def reference_wanda(model: nn.Module, group: str) -> Tensor:
    return over_readers(model, group, lambda w, x: w.abs().sum() * x.norm())


def reference_flap(model: nn.Module, group: str) -> Tensor:
    return over_readers(
        model, group, lambda w, x: w.norm() ** 2 * ((x - x.mean()) ** 2).sum() / len(x)
    )


def reference_apoz(model: nn.Module, group: str) -> Tensor:
    active = over_readers(model, group, lambda w, x: 1 - (x == 0).sum() / len(x))
    norms = reference_l2(model, group)
    return active / len(READERS[group]) + APOZ_TIE * norms / norms.max()


def reference_lamp(model: nn.Module, group: str) -> Tensor:
    norms = reference_l2(model, group)
    return torch.stack([n**2 / sum(m**2 for m in norms if m >= n) for n in norms])


def reference_hessian(model: nn.Module, group: str) -> Tensor:
    """The same probes, one after the other, on a function of the parameters."""
    members = {
        n: p.detach() for n, p in model.named_parameters() if n not in ("head.weight", "head.bias")
    }
    generator = torch.Generator().manual_seed(3)
    estimate = {n: torch.zeros_like(p) for n, p in members.items()}
    for batch in calibration("residual"):

        def loss(values: dict[str, Tensor], x: Tensor = batch) -> Tensor:
            return (functional_call(model, values, x) - 0.3).square().sum(1).mean()

        for _ in range(PROBES):
            z = random_signs(members, generator)
            _, pulled_back = torch.func.vjp(torch.func.grad(loss), members)
            [product] = pulled_back(z)
            for n in members:
                estimate[n] += z[n] * product[n] / (3 * PROBES)
    named = {id(p): n for n, p in model.named_parameters()}

    def saliency(channel: int) -> Tensor:
        return sum(
            (estimate[named[id(p)]][channel] * p[channel] ** 2).sum() / 2
            for p in coupled(model, group)
        )

    return per_channel(group, saliency)


def windows_read(model: nn.Module, layer: str) -> tuple[Tensor, Tensor, list[int]]:
    """Return all that a layer reads for its outputs, its weights, and whose channel each entry is.

    Rows are about their mean if the layer has a bias. Entries are [channel, kernel position].
    """
    module = model.get_submodule(layer)
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, x, y: seen.append(x[0].detach()))
    for batch in calibration("residual"):
        model(batch)
    hook.remove()
    if isinstance(module, nn.Conv2d):
        how = {"stride": module.stride, "padding": module.padding}
        columns = [F.unfold(x, module.kernel_size, **how).mT.flatten(0, 1) for x in seen]
    else:
        columns = seen
    x, w = torch.cat(columns).double(), module.weight.detach().flatten(1).double().T
    channels = module.weight.shape[1]
    owner = [c for c in range(channels) for _ in range(len(w) // channels)]
    return (x - x.mean(0) if module.bias is not None else x), w, owner


def least_error(x: Tensor, w: Tensor, gone: list[bool]) -> float:
    """Return the least squared error of outputs x w, per row, by weights that are 0 where `gone`.

    By least squares with rows for the ridge: sqrt(ridge) (w' - w) = 0.
    """
    ridge = RIDGE * x.square().mean() * len(x)
    rows = torch.cat([x, ridge.sqrt() * torch.eye(len(w), dtype=x.dtype)])
    stays = [not g for g in gone]
    best = torch.linalg.lstsq(rows[:, stays], rows @ w, driver="gelsd").solution
    return float((rows[:, stays] @ best - rows @ w).square().sum()) / len(x)


def eliminated(
    read: list[tuple[Tensor, Tensor, list[int]]], channels: int
) -> tuple[list[int], list[float]]:
    """Try every channel in every step, and solve for all weights each time."""
    order: list[int] = []
    made: list[float] = []
    while len(order) < channels:
        errors = {}
        for channel in sorted(set(range(channels)) - set(order)):
            gone = {*order, channel}
            errors[channel] = sum(least_error(x, w, [c in gone for c in of]) for x, w, of in read)
        order.append(min(errors, key=lambda c: errors[c]))
        made.append(errors[order[-1]])
    return order, made


def reference_obs(model: nn.Module, group: str) -> Tensor:
    channels = grouped("residual").channels[group]
    order, made = eliminated([windows_read(model, n) for n in READERS[group]], channels)
    score = torch.empty(channels)
    for place, channel in enumerate(order):
        score[channel] = (place + 1) / channels + made[place] / made[-1]
    return score


REFERENCES = {
    "l1": reference_l1,
    "l2": reference_l2,
    "bn": reference_bn,
    "fpgm": reference_fpgm,
    "gradient": reference_gradient,
    "taylor": reference_taylor,
    "fisher": reference_fisher,
    "wanda": reference_wanda,
    "flap": reference_flap,
    "apoz": reference_apoz,
    "lamp": reference_lamp,
    "hessian": reference_hessian,
    "obs": reference_obs,
}


@pytest.mark.parametrize("group", CONVS)
@pytest.mark.parametrize("name", REFERENCES)
def test_matches_its_reference(name: str, group: str) -> None:
    model, _ = build("residual")
    expected = REFERENCES[name](model, group)
    torch.testing.assert_close(scores(name, "residual")[group], expected, rtol=1e-3, atol=1e-5)


def test_every_criterion_has_a_reference() -> None:
    assert set(CRITERIA) - set(REFERENCES) == {"random"}


def test_fisher_sums_the_positions_of_a_flattened_channel() -> None:
    model, _ = build("flatten")
    samples = [x[None] for batch in calibration("flatten") for x in batch]
    expected = gated_fisher(model, ["3"], 6, samples, spread=16)
    torch.testing.assert_close(scores("fisher", "flatten")["0"], expected, rtol=1e-3, atol=1e-6)


def test_probes_find_the_hessians_diagonal() -> None:
    model, _ = build("mlp")
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    first = ("0.weight", "0.bias")
    batch = calibration("mlp")[0]

    def loss(flat: Tensor) -> Tensor:
        weight, bias = flat[:72].reshape(12, 6), flat[72:]
        values = parameters | {"0.weight": weight, "0.bias": bias}
        return (functional_call(model, values, batch) - 0.3).square().sum(1).mean()

    flat = torch.cat([parameters[n].flatten() for n in first])
    exact = torch.autograd.functional.hessian(loss, flat).diagonal()
    asked = {n: p for n, p in model.named_parameters() if n in first}
    errors = []
    for probes in (20, 2_000):
        found = hessian_diagonal(model, asked, [batch], mean_square, seed=0, probes=probes)
        errors.append((torch.cat([found[n].flatten() for n in first]) - exact).norm())
    assert errors[1] < 0.1 * exact.norm()
    assert errors[1] < 0.3 * errors[0]  # the error falls as 1 / sqrt(probes): here to a tenth


class Once(torch.autograd.Function):
    """The square, which can be differentiated once only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


class SquareOnce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


def test_taylor_stands_in_where_nothing_can_be_differentiated_twice() -> None:
    model = build("mlp")[0]
    model[1] = SquareOnce()
    evidence = collect(
        model, grouped("mlp"), batches=calibration("mlp"), loss=mean_square, curvature=True
    )
    found = score_groups("hessian", evidence, grouped("mlp"))
    assert torch.equal(found["0"], score_groups("taylor", evidence, grouped("mlp"))["0"])
    # A loss that bends nowhere has no curvature, and that is not the same.
    straight = collect(
        nn.Sequential(nn.Linear(6, 12)),
        one_group(out("0.weight", 12)),
        batches=calibration("mlp"),
        loss=lambda m, x: m(x).sum(),
        curvature=True,
    )
    assert not score_groups("hessian", straight, one_group(out("0.weight", 12)))["g"].any()


def test_attention_can_be_differentiated_twice() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(4, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.into(x)
            return self.head(F.scaled_dot_product_attention(y, y, y))

    grouping = one_group(out("into.weight", 8))
    evidence = collect(
        Attention(), grouping, batches=[torch.randn(2, 5, 4)], loss=mean_square, curvature=True
    )
    assert evidence.curvature["into.weight"].any()


# --- readers that hide what they read, groups that nothing produces ------------------------------


def one_group(*slices: Slice) -> Grouping:
    group = ChannelGroup(name="g", channels=len(slices[0].index), slices=slices)
    return Grouping(groups=(group,), blocked=(), shapes={}, positions={})


def out(tensor: str, channels: int) -> Slice:
    return Slice(tensor=tensor, dim=0, role="out", index=np.arange(channels)[:, None])


def read_by(tensor: str, channels: int) -> Slice:
    return Slice(tensor=tensor, dim=1, role="in", index=np.arange(channels)[:, None])


class Hiding(nn.Module):
    """A layer that is called, one whose weight is only borrowed, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 5)
        self.called = nn.Linear(5, 3)
        self.borrowed = nn.Linear(5, 3)
        self.mix = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x).relu()
        return self.called(y) + F.linear(y, self.borrowed.weight) + y @ self.mix.T


HIDDEN = ["borrowed.weight", "mix"]


def hiding(*readers: str) -> tuple[nn.Module, Evidence, Grouping]:
    torch.manual_seed(0)
    model = Hiding()
    produced = [out("into.weight", 5), out("into.bias", 5)]
    grouping = one_group(*produced, *(read_by(name, 5) for name in readers))
    evidence = collect(model, grouping, batches=calibration("mlp"), loss=mean_square, moments=True)
    return model, evidence, grouping


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_part_of_a_gate_is_no_gate(hidden: str) -> None:
    _, evidence, grouping = hiding("called.weight", hidden)
    found = score_groups("fisher", evidence, grouping)["g"]
    assert torch.equal(found, score_groups("taylor", evidence, grouping)["g"])
    _, evidence, grouping = hiding("called.weight")
    found = score_groups("fisher", evidence, grouping)["g"]
    assert not torch.equal(found, score_groups("taylor", evidence, grouping)["g"])


@pytest.mark.parametrize("name", ["wanda", "flap", "apoz", "obs"])
def test_readers_that_hide_what_they_read_are_left_out(name: str) -> None:
    def found(criterion: str, *readers: str) -> Tensor:
        _, evidence, grouping = hiding(*readers)
        return score_groups(criterion, evidence, grouping)["g"]

    assert torch.equal(found(name, "called.weight", *HIDDEN), found(name, "called.weight"))
    assert not torch.equal(found(name, "called.weight"), found("l2", "called.weight"))
    assert torch.equal(found(name, *HIDDEN), found("l2", *HIDDEN))


class Frozen(nn.Module):
    """Its body runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 5)
        self.middle = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.middle(self.into(x).relu())
        return self.head(y)


@pytest.mark.parametrize(
    "loss", [mean_square, lambda m, x: m.head(m.middle(m.into(x))).square().mean()]
)
def test_readers_without_gradients_or_batches_have_no_gates(loss: Any) -> None:
    torch.manual_seed(0)
    grouping = one_group(out("into.weight", 5), read_by("middle.weight", 5))
    evidence = collect(Frozen(), grouping, batches=calibration("mlp"), loss=loss)
    assert not evidence.fisher
    found = score_groups("fisher", evidence, grouping)["g"]
    assert torch.equal(found, score_groups("taylor", evidence, grouping)["g"])
    assert score_groups("wanda", evidence, grouping)["g"].all()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 5)
        self.lstm = nn.LSTM(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.into(x))[0][:, -1])


@pytest.mark.parametrize("name", CRITERIA)
def test_recurrent_readers_are_scored(name: str) -> None:
    torch.manual_seed(0)
    model = Recurrent()
    gates = Slice(
        tensor="lstm.weight_hh_l0", dim=0, role="out", index=np.arange(16).reshape(4, 4).T.copy()
    )
    into = ChannelGroup(
        name="into", channels=5, slices=(out("into.weight", 5), read_by("lstm.weight_ih_l0", 5))
    )
    state = ChannelGroup(
        name="lstm", channels=4, slices=(gates, read_by("lstm.weight_hh_l0", 4),
                                         read_by("head.weight", 4))
    )  # fmt: skip
    grouping = Grouping(groups=(into, state), blocked=(), shapes={}, positions={})
    batches = [torch.randn(3, 7, 6)]
    evidence = collect(
        model, grouping, batches=batches, loss=mean_square, curvature=True, moments=True
    )
    found = score_groups(name, evidence, grouping)
    assert all(len(s.unique()) > 1 for s in found.values())


@pytest.mark.parametrize("name", CRITERIA)
def test_a_models_inputs_are_scored_by_what_reads_them(name: str) -> None:
    model, _ = build("mlp")
    grouping = one_group(read_by("0.weight", 6))
    evidence = collect(
        model,
        grouping,
        batches=calibration("mlp"),
        loss=mean_square,
        curvature=True,
        moments=True,
    )
    found = score_groups(name, evidence, grouping)["g"]
    assert len(found.unique()) == 6
    if name == "l1":
        torch.testing.assert_close(found, model[0].weight.detach().abs().sum(0))
    if name == "fisher":
        samples = [x[None] for batch in calibration("mlp") for x in batch]
        torch.testing.assert_close(found, gated_fisher(model, ["0"], 6, samples))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 5)
        self.one = nn.Linear(5, 3)
        self.other = nn.Linear(5, 3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x).relu()
        return self.one(y) * self.other(2 * y)


def test_layers_that_share_a_weight_are_one_reader() -> None:
    torch.manual_seed(0)
    model = Tied()
    grouping = one_group(out("into.weight", 5), read_by("one.weight", 5))
    batches = calibration("mlp")
    evidence = collect(model, grouping, batches=batches, loss=mean_square)
    samples = [x[None] for batch in batches for x in batch]
    expected = gated_fisher(model, ["one", "other"], 5, samples)
    torch.testing.assert_close(score_groups("fisher", evidence, grouping)["g"], expected)
    assert evidence.inputs["one.weight"].count == 2 * len(samples)


def test_entries_of_a_flattened_channel_add_up() -> None:
    model, _ = build("flatten")
    x = torch.cat(calibration("flatten"))
    read = model[:3](x).detach()  # [11, 96]: 16 entries in a row are a channel
    weight = model[3].weight.detach()
    by_entry = {
        "wanda": weight.abs().sum(0) * read.norm(dim=0),
        "flap": weight.square().sum(0) * read.var(0, correction=0),
        "apoz": (read != 0).float().mean(0) / 16,
    }
    for name, values in by_entry.items():
        tie = 0.0
        if name == "apoz":
            norms = scores("l2", "flatten")["0"]
            tie = APOZ_TIE * norms / norms.max()
        expected = values.reshape(6, 16).sum(1) + tie
        torch.testing.assert_close(scores(name, "flatten")["0"], expected)


def test_zeros_decide_before_norms_do() -> None:
    model, _ = build("mlp")
    with torch.no_grad():
        model[0].bias[:3] = -100.0  # never active,
        model[0].weight[:3] *= 5  # though of the largest norms
    evidence = collect(model, grouped("mlp"), batches=calibration("mlp"), loss=mean_square)
    found = score_groups("apoz", evidence, grouped("mlp"))
    assert set(found["0"].argsort()[:3].tolist()) == {0, 1, 2}
    # After tanh nothing is zero: the order is that of the norms.
    norms = score_groups("l2", evidence, grouped("mlp"))["2"]
    assert torch.equal(found["2"].argsort(), norms.argsort())


def test_lamp_keeps_the_order_of_l2_and_knows_ties() -> None:
    for net in NETS:
        for group, score in scores("lamp", net).items():
            norms = scores("l2", net)[group]
            assert torch.equal(score.argsort(stable=True), norms.argsort(stable=True))
            assert score.max() == 1.0
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [-2.0], [0.0]]))
    grouping = one_group(out("0.weight", 4))
    found = score_groups("lamp", collect(model, grouping), grouping)["g"]
    torch.testing.assert_close(found, torch.tensor([1 / 9, 1 / 2, 1 / 2, 0.0]))


def test_a_transposed_convolution_produces_along_its_second_dimension() -> None:
    weight = build("autoencoder")[0][4].weight.detach()
    assert weight.shape == (4, 10, 2, 2)
    torch.testing.assert_close(scores("l1", "autoencoder")["4"], weight.abs().sum((0, 2, 3)))


def test_depthwise_filters_count_with_their_channel() -> None:
    model, _ = build("depthwise")
    expected = sum(model[i].weight.detach().flatten(1).abs().sum(1) for i in (0, 1))
    torch.testing.assert_close(scores("l1", "depthwise")["0"], expected)


def test_bn_without_batch_norm_is_l2() -> None:
    assert torch.equal(scores("bn", "mlp")["0"], scores("l2", "mlp")["0"])


def test_layer_norm_is_no_batch_norm() -> None:
    assert torch.equal(scores("bn", "layer_norm")["0"], scores("l2", "layer_norm")["0"])


def test_random_depends_on_seed_and_group() -> None:
    model, _ = build("residual")
    drawn = [
        score_groups("random", collect(model, grouped("residual"), seed=seed), grouped("residual"))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0]["stem"], drawn[1]["stem"])
    assert not torch.equal(drawn[0]["stem"], drawn[2]["stem"])
    assert not torch.equal(drawn[0]["stem"], drawn[0]["conv1"][:8])


def test_tensors_of_no_group_change_no_score() -> None:
    model, _ = build("residual")
    with torch.no_grad():
        model.head.weight.mul_(7)
    changed = collect(model, grouped("residual"))
    for name in ("l1", "l2", "bn", "fpgm"):
        for group, score in score_groups(name, changed, grouped("residual")).items():
            assert torch.equal(score, scores(name, "residual")[group])


# --- the registry -------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


@pytest.mark.usefixtures("registry")
def test_users_add_criteria() -> None:
    @criterion("largest_weight", needs_data=True)
    def largest(evidence: Evidence, group: Any) -> Tensor:
        return torch.stack([w.abs().amax(1) for w in evidence.weights(group)]).amax(0)

    assert get_criterion("largest_weight").needs_data
    assert get_criterion("largest_weight").extras == (False, False)
    weight = build("mlp")[0][0].weight.detach()
    assert torch.equal(scores("largest_weight", "mlp")["0"], weight.abs().amax(1))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda e, g: torch.zeros(g.channels + 1),
        lambda e, g: torch.zeros(g.channels, 1),
        lambda e, g: torch.full((g.channels,), torch.nan),
        lambda e, g: torch.full((g.channels,), torch.inf),
    ],
)
def test_wrong_scores_are_refused(wrong: Any) -> None:
    criterion("wrong")(wrong)
    with pytest.raises(AutopruneError, match="one finite score per channel, but 'wrong' returned"):
        scores("wrong", "mlp")


def test_unknown_criteria_are_refused() -> None:
    with pytest.raises(AutopruneError, match=r"Choose one of: apoz, bn, .*Did you mean 'taylor'"):
        score_groups("tailor", evidence_of("mlp"), grouped("mlp"))


# --- the choice ---------------------------------------------------------------------------------


@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5]), min_size=1, max_size=8))
def test_top_channels_are_the_highest(values: list[float]) -> None:
    for width in range(1, len(values) + 1):
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))
        assert top_channels(torch.tensor(values), width) == tuple(sorted(order[:width]))
