"""Pruning single weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, build, grouped, same_state
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.cost import CostModel
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.evidence import collect
from autoprune.pruning.forward import call
from autoprune.pruning.groups import from_json, to_json
from autoprune.pruning.masks import count_nonzero, masked, masks_of, weight_groups, weight_scores


def _magnitudes(name: str, granularity: Any) -> Any:
    model, _ = build(name)
    grouping = weight_groups(grouped(name), granularity)
    return model, grouping, weight_scores("l2", collect(model, grouping), grouping)


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_nonzero_weights_are_what_the_plan_costs(name: str, data: st.DataObject) -> None:
    model, grouping, scores = _magnitudes(name, "weight")
    before = copy.deepcopy(model.state_dict())
    widths = {n: data.draw(st.integers(1, count)) for n, count in grouping.channels.items()}
    small = masked(model, grouping, scores, widths, "weight")
    cost = CostModel(grouping)
    assert count_nonzero(small, list(grouping.weights.values())) == cost.params(widths)
    assert cost.macs(widths) <= cost.macs(grouping.channels)
    assert same_state(model.state_dict(), before)


@pytest.mark.parametrize("name", NETS)
def test_two_of_four(name: str) -> None:
    model, grouping, scores = _magnitudes(name, "2:4")
    widths = {n: count // 2 for n, count in grouping.channels.items()}
    small = masked(model, grouping, scores, widths, "2:4")
    for layer, tensor in grouping.weights.items():
        rows = small.get_parameter(tensor).movedim(1, -1).reshape(-1, 4)
        dense = model.get_parameter(tensor).movedim(1, -1).reshape(-1, 4)
        assert (rows.count_nonzero(1) == 2).all(), layer
        assert torch.equal(rows.abs().sum(1), dense.abs().topk(2, dim=1).values.sum(1))
    assert CostModel(grouping).params(widths) == count_nonzero(small, [*grouping.weights.values()])
    blocked = {b.layer for b in grouping.blocked}
    matrices = {t for t, s in grouping.shapes.items() if len(s) > 1 and t in grouping.positions}
    assert {t.removesuffix(".weight") for t in matrices} == blocked | set(grouping.channels)


def test_the_largest_weights_stay() -> None:
    model, grouping, scores = _magnitudes("mlp", "weight")
    small = masked(model, grouping, scores, {**grouping.channels, "0": 10}, "weight")
    left = small[0].weight[small[0].weight != 0].abs().sort().values
    assert torch.equal(left, model[0].weight.abs().flatten().sort().values[-10:])
    assert torch.equal(small[2].weight, model[2].weight)


def test_what_is_zero_stays_zero() -> None:
    model, grouping, scores = _magnitudes("conv_bn", "weight")
    half = {n: count // 2 for n, count in grouping.channels.items()}
    parent = masked(model, grouping, scores, half, "weight")
    quarter = {n: count // 4 for n, count in grouping.channels.items()}
    noise = weight_scores("random", collect(parent, grouping), grouping)
    child = masked(parent, grouping, noise, quarter, "weight")
    for tensor, mask in masks_of(child, grouping).items():
        assert (mask <= masks_of(parent, grouping)[tensor]).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_weights(criterion: str) -> None:
    model, example = build("conv_bn")
    grouping = weight_groups(grouped("conv_bn"), "weight")
    batches = [(example, torch.tensor([0, 1]))]
    evidence = collect(
        model,
        grouped("conv_bn"),
        batches=batches,
        loss=lambda m, b: F.cross_entropy(call(m, b[0]), b[1]),
        curvature=True,
        moments=True,
    )
    for name, score in weight_scores(criterion, evidence, grouping).items():
        assert score.shape == model.get_parameter(grouping.weights[name]).shape
        assert torch.isfinite(score).all()


def test_scores_by_hand() -> None:
    model, (x, y) = nn.Sequential(nn.Linear(3, 2)), (torch.randn(5, 3), torch.randn(5, 2))
    channels = find(model)
    evidence = collect(
        model,
        channels,
        batches=[(x, y)],
        loss=lambda m, b: F.mse_loss(m(b[0]), b[1]),
    )
    grouping = weight_groups(channels, "weight")
    weight = model[0].weight
    gradient = torch.autograd.grad(F.mse_loss(model(x), y), weight)[0]
    saliency = (gradient * weight).abs()
    assert torch.allclose(weight_scores("gradient", evidence, grouping)["0"], saliency)
    assert torch.allclose(weight_scores("taylor", evidence, grouping)["0"], saliency.square())


def find(model: nn.Module) -> Any:
    from autoprune.pruning.graph import find_groups

    return find_groups(model, torch.zeros(2, 3))


@pytest.mark.parametrize(("granularity", "width"), [("weight", 0), ("weight", 73), ("2:4", 20)])
def test_widths_that_are_not_allowed(granularity: Any, width: int) -> None:
    model, grouping, scores = _magnitudes("mlp", "weight")
    with pytest.raises(AutopruneError, match=r"Group '0' (has 72 weights and )?must keep"):
        masked(model, grouping, scores, {**grouping.channels, "0": width}, granularity)


def test_keep_and_json() -> None:
    grouping = weight_groups(grouped("mlp"), "weight", keep=["2"])
    assert set(grouping.channels) == {"0", "5"}
    assert [b.reason for b in grouping.blocked] == ["kept by '2'"]
    again = from_json(to_json(grouping))
    assert again.weights == grouping.weights
    assert CostModel(again).params({"0": 1, "5": 1}) == CostModel(grouping).params({"0": 1, "5": 1})
