from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, grouped

from autoprune.pruning.cost import CostModel
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.lineage import covers
from autoprune.searching.widths import allowed_widths, nearest_width

COST = CostModel(grouped("residual"))
CHANNELS = grouped("residual").channels
ALLOCATOR = Allocator(COST)
SHAPES = st.builds(
    Shape, eta=st.floats(0, 1.5), beta=st.floats(-0.5, 0.5), kappa=st.floats(-0.5, 0.5)
)
SIZES = st.integers(ALLOCATOR.least_params, ALLOCATOR.dense_params)


@given(size=SIZES, shape=SHAPES)
def test_a_plan_fits_its_size(size: int, shape: Shape) -> None:
    widths = ALLOCATOR.widths(size, shape)
    assert list(widths) == COST.names
    assert all(1 <= widths[n] <= grouped("residual").channels[n] for n in widths)
    assert COST.params(widths) <= size


@given(size=SIZES, shape=SHAPES)
def test_a_plan_is_the_widest_of_its_shape(size: int, shape: Shape) -> None:
    channels = COST.channels
    sensitivity = np.zeros(len(channels))  # none was given
    depth = np.linspace(-1, 1, len(channels))
    weights = channels**shape.eta * np.exp(shape.beta * sensitivity + shape.kappa * depth)
    scales = np.geomspace(0.4 / weights.max(), 2.1 * channels.max() / weights.min(), 3_000)
    rows = np.clip(np.rint(scales[:, None] * weights), 1, channels).astype(np.int64)
    params = COST.params_of(rows)
    assert COST.params(ALLOCATOR.widths(size, shape)) >= params[params <= size].max()


@given(sizes=st.lists(SIZES, min_size=2, max_size=6), shape=SHAPES)
def test_smaller_plans_nest_in_larger_ones(sizes: list[int], shape: Shape) -> None:
    plans = [ALLOCATOR.widths(size, shape) for size in sorted(sizes, reverse=True)]
    assert all(covers(a, b) for a, b in pairwise(plans))


@given(size=SIZES, shape=SHAPES, parent=SIZES)
def test_a_child_is_no_wider_than_its_parent(size: int, shape: Shape, parent: int) -> None:
    ceiling = ALLOCATOR.widths(parent, Shape(eta=0.2))
    widths = ALLOCATOR.widths(size, shape, at_most=ceiling)
    assert covers(ceiling, widths)
    assert COST.params(widths) <= max(size, ALLOCATOR.least_params)


@pytest.mark.parametrize("name", NETS)
def test_the_ends_are_dense_and_smallest(name: str) -> None:
    cost = CostModel(grouped(name))
    allocator = Allocator(cost)
    assert allocator.widths(allocator.dense_params, Shape()) == grouped(name).channels
    assert allocator.dense_params == cost.params(grouped(name).channels)
    smallest = dict.fromkeys(grouped(name).channels, 1)
    assert allocator.least_params == cost.params(smallest)
    for too_small in (allocator.least_params, 0):
        assert allocator.widths(too_small, Shape()) == smallest


def test_no_group_gets_narrower_than_its_lowest() -> None:
    lowest = {"stem": 3, "conv1": 5, "down": 2}
    allocator = Allocator(
        COST,
        allowed={n: allowed_widths(c, lowest=lowest[n]) for n, c in CHANNELS.items()},
    )
    assert allocator.least_params == COST.params(lowest)
    assert allocator.widths(0, Shape()) == lowest
    middle = allocator.widths((allocator.least_params + allocator.dense_params) // 2, Shape())
    assert covers(middle, lowest)


@given(size=SIZES, shape=SHAPES, round_to=st.sampled_from([2, 3, 4, 5]))
def test_rounded_widths_meet_the_size(size: int, shape: Shape, round_to: int) -> None:
    allowed = {n: allowed_widths(c, round_to=round_to) for n, c in CHANNELS.items()}
    allocator = Allocator(COST, allowed=allowed)
    widths = allocator.widths(size, shape)
    assert all(widths[n] in allowed[n] for n in widths)
    if size < allocator.least_params:
        assert widths == {n: int(a[0]) for n, a in allowed.items()}
        return
    # No plan of the family between this one and the wanted size: those on a fine grid of scales.
    depth = np.linspace(-1, 1, len(CHANNELS))
    weights = COST.channels**shape.eta * np.exp(shape.kappa * depth)
    weights_of = dict(zip(COST.names, weights, strict=True))
    scales = np.geomspace(0.4 / weights.max(), 2.1 * COST.channels.max() / weights.min(), 2_000)
    family = [
        [nearest_width(float(scale * w), allowed[n]) for n, w in weights_of.items()]
        for scale in scales
    ]
    params = COST.params_of(np.array(family, dtype=np.int64))
    assert params[params <= size].max(initial=0) <= COST.params(widths) <= size


def test_eta_says_how_wide_layers_share() -> None:
    size = ALLOCATOR.dense_params // 3
    ratio = ALLOCATOR.widths(size, Shape(eta=1.0))
    constant = ALLOCATOR.widths(size, Shape(eta=0.0))
    kept = {n: w / grouped("residual").channels[n] for n, w in ratio.items()}
    assert max(kept.values()) - min(kept.values()) < 0.15
    assert len(set(constant.values())) == 1


def test_sensitive_and_deep_groups_get_more() -> None:
    size = ALLOCATOR.dense_params // 3
    allocator = Allocator(COST, sensitivity={"stem": 1.0, "conv1": -4.0, "down": -4.5})
    plain, wary = allocator.widths(size, Shape()), allocator.widths(size, Shape(beta=0.5))
    assert wary["stem"] > plain["stem"]
    assert wary["down"] < plain["down"]
    deep = ALLOCATOR.widths(size, Shape(kappa=0.8))
    assert deep["stem"] < plain["stem"]
    assert deep["down"] > plain["down"]


# --- by LAMP scores ------------------------------------------------------------------------------

LAMP = {
    name: np.random.default_rng(i).uniform(0.01, 1, count).tolist()
    for i, (name, count) in enumerate(grouped("residual").channels.items())
}
BY_LAMP = Allocator(COST, lamp=LAMP)


@given(size=SIZES)
def test_one_lamp_score_cuts_every_group(size: int) -> None:
    widths = BY_LAMP.lamp_widths(size)
    assert COST.params(widths) <= size
    # Tried by hand: every score as the threshold, the widest that fits.
    plans = [
        {n: max(sum(s >= threshold for s in scores), 1) for n, scores in LAMP.items()}
        for threshold in {0.0, *(s for scores in LAMP.values() for s in scores)}
    ]
    fitting = [p for p in plans if COST.params(p) <= size]
    assert widths == max(fitting, key=COST.params)


@given(size=SIZES, parent=SIZES)
def test_a_lamp_child_is_no_wider_than_its_parent(size: int, parent: int) -> None:
    ceiling = BY_LAMP.widths(parent, Shape(eta=0.2))
    widths = BY_LAMP.lamp_widths(size, at_most=ceiling)
    assert covers(ceiling, widths)
    assert COST.params(widths) <= max(size, BY_LAMP.least_params)


def test_lamp_scores_respect_the_lowest_widths() -> None:
    lowest = {"stem": 3, "conv1": 5, "down": 2}
    allowed = {n: allowed_widths(c, lowest=lowest[n]) for n, c in CHANNELS.items()}
    assert Allocator(COST, lamp=LAMP, allowed=allowed).lamp_widths(0) == lowest


@given(size=SIZES)
def test_lamp_widths_are_allowed_ones(size: int) -> None:
    allowed = {n: allowed_widths(c, round_to=4) for n, c in CHANNELS.items()}
    allocator = Allocator(COST, lamp=LAMP, allowed=allowed)
    widths = allocator.lamp_widths(size)
    assert all(widths[n] in allowed[n] for n in widths)
    assert COST.params(widths) <= max(size, allocator.least_params)


def test_equal_lamp_scores_go_together() -> None:
    allocator = Allocator(
        COST, lamp={n: [0.5] * c for n, c in grouped("residual").channels.items()}
    )
    assert allocator.lamp_widths(ALLOCATOR.dense_params) == grouped("residual").channels
    assert set(allocator.lamp_widths(ALLOCATOR.dense_params - 1).values()) == {1}


def test_without_lamp_scores_there_is_no_lamp_spread() -> None:
    assert BY_LAMP.knows_lamp
    assert not ALLOCATOR.knows_lamp
