"""Every criterion keeps the contract; each is compared with a slow, obvious version of itself.

The references name a residual network's layers by hand, so that they do not believe the grouping.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, build, grouped, noise_like, same_state
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.criteria import CRITERIA, criterion, get_criterion, score_groups
from autoprune.pruning.evidence import Evidence, collect, top_channels
from autoprune.pruning.forward import call

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
    return collect(model, grouped(name), batches=calibration(name), loss=mean_square, seed=3)


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
        assert (score >= 0).all()
        assert len(score.unique()) > 1


@pytest.mark.parametrize("name", CRITERIA)
def test_the_same_evidence_gives_the_same_scores(name: str) -> None:
    model, _ = build("residual")
    again = collect(
        model, grouped("residual"), batches=calibration("residual"), loss=mean_square, seed=3
    )
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
    collect(model, grouped(net), batches=calibration(net), loss=mean_square)
    assert same_state(model.state_dict(), before)
    assert model.training
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


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


REFERENCES = {
    "l1": reference_l1,
    "l2": reference_l2,
    "bn": reference_bn,
    "fpgm": reference_fpgm,
    "gradient": reference_gradient,
    "taylor": reference_taylor,
    "fisher": reference_fisher,
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
    with pytest.raises(AutopruneError, match=r"Choose one of: bn, .*Did you mean 'taylor'"):
        score_groups("tailor", evidence_of("mlp"), grouped("mlp"))


# --- the choice ---------------------------------------------------------------------------------


@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5]), min_size=1, max_size=8))
def test_top_channels_are_the_highest(values: list[float]) -> None:
    for width in range(1, len(values) + 1):
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))
        assert top_channels(torch.tensor(values), width) == tuple(sorted(order[:width]))
