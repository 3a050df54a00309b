from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune import AutopruneError, Space
from autoprune.pruning.cost import CostModel
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.depth import Depth
from autoprune.searching.descents import FIRST_SCOUT, SMALLEST, Opening, Step
from autoprune.searching.lineage import covers
from autoprune.searching.recipes import Recipes
from autoprune.searching.space import SearchSpace
from autoprune.searching.strategy import Strategy


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


def grouping_of(*widths: int) -> Grouping:
    """Return the groups of a network with a residual block of each width."""
    blocks = [Block(width) for width in widths]
    network = nn.Sequential(nn.Linear(4, 8), *blocks, nn.Linear(8, 3))
    return find_groups(network, torch.zeros(2, 4))


GROUPING = grouping_of(40, 20)
ALLOCATOR = Allocator(CostModel(GROUPING))
BLOCKS = GROUPING.blocks


def recipes(epochs: Any = (1, 8), lr: Any = (5e-3, 2e-2)) -> Recipes:
    space = SearchSpace(channels={"0": 8}, space=Space(epochs=epochs, lr=lr), has_dropout=False)
    return Recipes(space.distributions, by_size=True)


def opening(
    budget: float = 100,
    *,
    epochs: Any = (1, 8),
    lr: Any = (5e-3, 2e-2),
    depth: Depth | None = None,
    **strategy: Any,
) -> Opening:
    return Opening(Strategy(**strategy), ALLOCATOR, recipes(epochs, lr), budget=budget, depth=depth)


def epochs_of(found: Opening) -> list[int]:
    usual, fewest = recipes().usual(1.0), recipes().with_epochs({}, 0.0)
    return [(fewest if step.scout else usual)["epochs"] for step in found.steps]


def test_scouts_come_first_with_fewest_epochs() -> None:
    found = opening(scouts=4, chain_share=0.5)
    sizes = [step.share for step in found.steps]
    assert sizes[:4] == sorted(sizes[:4], reverse=True)
    assert epochs_of(found)[:4] == [1, 1, 1, 1]
    assert sizes[4] > sizes[3]
    least = max(ALLOCATOR.least_params / ALLOCATOR.dense_params, SMALLEST)
    assert least <= sizes[3] <= 1.02 * least


def test_a_small_budget_has_fewer_scouts_and_the_largest_ones() -> None:
    def scouts(budget: float) -> list[float]:
        shares = [step.share for step in opening(budget, scouts=5).steps]
        return shares[: next(i for i, share in enumerate(shares) if share > FIRST_SCOUT)]

    assert scouts(10) == []
    assert len(scouts(100)) > 2
    assert scouts(50) == scouts(100)[:2]


WIDE = (5e-4, 2e-2)
"""Learning rates, of which the middle need not be a good one."""


def test_learning_rates_are_tried_where_there_are_many_and_epochs_to_spare() -> None:
    def tried(budget: float = 100, **settings: Any) -> int:
        return len(opening(budget, **settings).probes)

    assert tried(lr=WIDE) == 4
    assert tried(lr=(1e-3, 1e-2)) == 3
    assert tried(lr=(1e-3, 4.1e-3)) == 2
    assert tried() == tried(lr=1e-2) == tried(lr=WIDE, try_rates=False) == 0
    assert tried(40, lr=WIDE) == 4
    assert tried(39, lr=WIDE) == 0
    assert tried(40, epochs=5, lr=WIDE) == 4  # the budget is in trials


def test_models_that_try_learning_rates_do_without_the_same_blocks() -> None:
    class Falling(Depth):
        def dropped(self, share: float) -> tuple[str, ...]:
            return BLOCKS[: int(share > 0.13)]

    depth = Falling(BLOCKS, {})
    probes = opening(lr=WIDE, depth=depth).probes
    assert len(probes) == 4
    assert len({tuple(step.widths[block] == 0 for block in BLOCKS) for step in probes}) == 1


def test_models_that_try_learning_rates_replace_the_first_scout() -> None:
    found, without = opening(lr=WIDE), opening(lr=WIDE, try_rates=False)
    assert found.steps[:4] == found.probes
    assert found.steps[4:7] == without.steps[1:4]
    sizes = [step.share for step in found.probes]
    assert sizes == sorted(set(sizes))
    assert without.steps[0].share <= sizes[0] < sizes[-1] < 2 * sizes[0]
    assert not any(covers(a.widths, b.widths) for a, b in pairwise(found.probes))
    assert sum(epochs_of(found)) <= 1.05 * sum(epochs_of(without))


def test_a_network_of_too_few_sizes_tries_no_learning_rates() -> None:
    grouping = find_groups(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), torch.zeros(2, 2))
    allocator = Allocator(CostModel(grouping))
    found = Opening(Strategy(), allocator, recipes(lr=WIDE), budget=400)
    assert found.probes == []
    assert found.steps[0].scout


def test_the_chain_takes_its_share_of_the_epochs() -> None:
    # Few of this network's sizes are distinct, so that a share may not be used up.
    for share in (0.2, 0.3):
        spent = sum(epochs_of(opening(100, scouts=0, chain_share=share)))
        assert 0.6 * 100 * share < spent < 1.2 * 100 * share


def test_fixed_epochs_are_counted_in_trials() -> None:
    found = opening(20, epochs=5, scouts=0, chain_share=0.5)
    assert 7 <= len(found.steps) <= 10


def test_a_chain_of_a_small_budget_takes_more_than_half_of_it() -> None:
    def chain(budget: int, **strategy: Any) -> float:
        return sum(epochs_of(opening(budget, scouts=0, **strategy))) / budget

    assert 0.7 < chain(20) < 1.0
    assert chain(400) < 0.6
    assert chain(20, chain_share=0.5) < 0.7


def test_models_of_a_half_a_quarter_an_eighth_are_in_the_chain_and_no_larger() -> None:
    # Each hidden layer is 256 wide: there are plans near every size.
    layers = [nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)]
    grouping = find_groups(nn.Sequential(*layers), torch.zeros(2, 32))
    allocator = Allocator(CostModel(grouping))
    for budget in (40, 60, 200):
        found = Opening(Strategy(scouts=0), allocator, recipes(), budget=budget)
        sizes = [step.share for step in found.steps]
        for power in (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64):
            assert 0.95 * power < max(size for size in sizes if size <= power) <= power
        ratios = [before / after for before, after in pairwise(sizes)]
        assert max(ratios) < 2.2
        assert 0.85 / 316 < sizes[-1] < 1.02 / 316


def test_small_plans_come_near_their_sizes() -> None:
    nearer = 0
    for first in range(3, 9):
        for second in range(12, 30, 3):
            layers = [nn.Linear(3, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()]
            network = nn.Sequential(*layers, nn.Linear(second, 2))
            allocator = Allocator(CostModel(find_groups(network, torch.zeros(2, 3))))
            step, *_ = Opening(Strategy(scouts=0), allocator, recipes(), budget=50).steps
            half = allocator.dense_params // 2
            plain = allocator.cost.params(allocator.widths(half, Shape()))
            assert plain <= allocator.cost.params(step.widths) <= half
            nearer += allocator.cost.params(step.widths) > plain
    assert nearer > 3


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("budget", [1, 3, 40, 400])
def test_each_plan_of_the_chain_is_smaller_than_the_one_before(budget: int, drops: bool) -> None:
    grouping = grouping_of(40, 20, 5, 64)
    allocator = Allocator(CostModel(grouping))
    depth = Depth(grouping.blocks, {}) if drops else None
    found = Opening(Strategy(scouts=0), allocator, recipes(), budget=budget, depth=depth)
    sizes = [step.share for step in found.steps]
    assert sizes
    assert all(after < before for before, after in pairwise(sizes))


def test_each_plan_is_cut_from_the_one_before() -> None:
    for before, after in pairwise(opening(60, scouts=0).steps):
        assert covers(before.widths, after.widths)


# --- depth --------------------------------------------------------------------------------------


def test_small_models_are_shallow() -> None:
    losses = {BLOCKS[0]: 0.1, BLOCKS[1]: 2.0}
    found = opening(scouts=3, depth=Depth(BLOCKS, losses))
    left = [sum(step.widths[block] for block in BLOCKS) for step in found.steps]
    assert left[:3] == sorted(left[:3], reverse=True)
    assert left[3:] == sorted(left[3:], reverse=True)
    assert len(set(left)) > 1
    for step, count in zip(found.steps, left, strict=True):
        gone = Depth(BLOCKS, losses).dropped(step.share)
        if count == 1:
            assert not step.widths[BLOCKS[0]], "the one that does less harm goes first"
        assert len(gone) in {len(BLOCKS) - count, len(BLOCKS) - count + 1}


def test_a_model_without_a_block_is_wider() -> None:
    shallow = opening(scouts=0, depth=Depth(BLOCKS, {})).steps
    deep = {round(step.share, 2): step for step in opening(scouts=0).steps}
    same = [(s, deep[round(s.share, 2)]) for s in shallow if round(s.share, 2) in deep]
    for mine, other in same:
        gone = [block for block in BLOCKS if not mine.widths[block]]
        assert all(other.widths[block] for block in BLOCKS)
        if gone:
            assert mine.widths["0"] >= other.widths["0"]
    assert any(not mine.widths[block] for mine, _ in same for block in BLOCKS)


def first_drop(*widths: int) -> tuple[Step, Step]:
    """Return the steps before and after the first block goes, of a chain in small steps."""
    grouping = grouping_of(*widths)
    allocator, depth = Allocator(CostModel(grouping)), Depth(grouping.blocks, {})
    steps = Opening(Strategy(scouts=0), allocator, recipes(), budget=400, depth=depth).steps
    return next(
        (before, after)
        for before, after in pairwise(steps)
        if any(before.widths[block] and not after.widths[block] for block in grouping.blocks)
    )


def test_without_a_small_block_a_plan_is_cut_from_the_one_before() -> None:
    before, after = first_drop(20, 20, 20, 20, 400)
    assert covers(before.widths, after.widths)


def test_without_a_large_block_a_plan_is_wider_than_the_one_before() -> None:
    before, after = first_drop(300, 300)
    assert not covers(before.widths, after.widths)


@pytest.mark.parametrize("depth", [None, Depth(BLOCKS, {})])
def test_no_step_is_smaller_than_the_least(depth: Depth | None) -> None:
    found = opening(scouts=3, depth=depth)
    assert min(ALLOCATOR.cost.params(step.widths) for step in found.steps) >= found.least_params


def test_the_least_harmful_blocks_go_first() -> None:
    depth = Depth(["a", "b", "c", "d"], {"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.2})
    gone = [depth.dropped(share) for share in np.geomspace(1, 1e-4, 200)]
    assert gone[0] == ()
    assert gone[-1] == ("b", "d", "c", "a")
    assert all(b[: len(a)] == a for a, b in pairwise(gone)), "what is gone stays gone"
    assert len(set(gone)) == 5, "one goes after the other"


def test_without_blocks_nothing_is_dropped() -> None:
    assert Depth([], {}).dropped(0.001) == ()


# --- strategies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("scouts", -1, "whole number of at least 0"),
        ("scouts", 1.5, "whole number of at least 0"),
        ("proposals", 0, "whole number of at least 1"),
        ("chain_share", 1.5, "between 0 and 1"),
    ],
)
def test_a_strategy_follows_its_rules(name: str, value: float, rule: str) -> None:
    with pytest.raises(AutopruneError, match=rf"`strategy.{name}` must be .*{rule}"):
        replace(Strategy(), **{name: value})
