from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import AutopruneError, Space
from autoprune.pruning.cost import CostModel
from autoprune.pruning.graph import find_groups
from autoprune.searching.allocation import Allocator
from autoprune.searching.descents import FIRST_SCOUT, SMALLEST, Opening
from autoprune.searching.history import Finished
from autoprune.searching.recipes import Recipes
from autoprune.searching.space import SearchSpace
from autoprune.searching.strategy import Strategy


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


NETWORK = nn.Sequential(nn.Linear(4, 8), Block(40), Block(20), nn.Linear(8, 3))
GROUPING = find_groups(NETWORK, torch.zeros(2, 4))
ALLOCATOR = Allocator(CostModel(GROUPING))
BLOCKS = GROUPING.blocks


def recipes(epochs: Any = (1, 8)) -> Recipes:
    space = SearchSpace(
        channels={g.name: g.channels for g in GROUPING.groups},
        space=Space(epochs=epochs),
        has_dropout=False,
        blocks=BLOCKS,
    )
    return Recipes(space.distributions, fading=True)


def opening(budget: float = 100, *, epochs: Any = (1, 8), **strategy: Any) -> Opening:
    return Opening(Strategy(**strategy), ALLOCATOR, recipes(epochs), budget=budget, blocks=BLOCKS)


def epochs_of(found: Opening) -> list[int]:
    return [recipes().with_epochs({}, step.epochs_at)["epochs"] for step in found.steps]


def finished(widths: dict[str, int], score: float) -> Finished:
    return Finished(
        number=0,
        widths=widths,
        params=ALLOCATOR.cost.params(widths),
        score=score,
        costs={},
        epochs=1,
        lineage_epochs=1,
        recipe={},
    )


def test_scouts_come_first_with_fewest_epochs() -> None:
    found = opening(scouts=4, chain_share=0.5)
    sizes = [step.share for step in found.steps]
    assert sizes[:4] == sorted(sizes[:4], reverse=True)
    assert epochs_of(found)[:4] == [1, 1, 1, 1]
    assert sizes[4] > sizes[3]
    assert sizes[3] == pytest.approx(max(ALLOCATOR.least_params / ALLOCATOR.dense_params, SMALLEST))


def test_a_small_budget_is_not_scouted() -> None:
    assert opening(50, scouts=5).steps[0].share > FIRST_SCOUT
    assert opening(100, scouts=5).steps[0].share <= FIRST_SCOUT


def test_the_chain_takes_its_share_of_the_epochs() -> None:
    # Few of this network's sizes are distinct, so that a share may not be used up.
    for share in (0.2, 0.3):
        spent = sum(epochs_of(opening(100, scouts=0, probes=0, chain_share=share)))
        assert 0.6 * 100 * share < spent < 1.2 * 100 * share


def test_small_models_get_more_epochs() -> None:
    first, *others = epochs_of(opening(scouts=0))
    assert others == sorted(others)
    assert others[0] < others[-1]
    assert first > others[0], "the largest cut, of the dense model, is to be made good"
    assert len(set(epochs_of(opening(scouts=0, epochs_by_size=False)))) == 1


def test_fixed_epochs_are_counted_in_trials() -> None:
    found = opening(20, epochs=5, scouts=0, probes=0, chain_share=0.5)
    assert 7 <= len(found.steps) <= 10


def test_the_first_steps_are_the_largest() -> None:
    steps = opening(200, scouts=0, probes=0).steps
    falls = [a.share / b.share for a, b in pairwise(steps)]
    assert falls[0] > 1.2


# --- probes -------------------------------------------------------------------------------------


def place_of_first_probe(found: Opening) -> int:
    return next(place for place, step in enumerate(found.steps) if step.probe)


def test_a_probe_lacks_a_block_at_the_same_size() -> None:
    found = opening(scouts=0)
    place = place_of_first_probe(found)
    plain, probe = found.widths(place - 1, {}), found.widths(place, {})
    # The first block is the larger one.
    assert [block for block in BLOCKS if not probe[block]] == list(BLOCKS[:1])
    assert all(plain[block] for block in BLOCKS)
    assert ALLOCATOR.cost.params(probe) <= round(found.steps[place].share * ALLOCATOR.dense_params)
    assert sum(probe.values()) >= sum(plain.values()) - 1


@pytest.mark.parametrize("wins", [True, False])
def test_the_chain_goes_on_from_the_better_one(wins: bool) -> None:
    found = opening(scouts=0)
    place = place_of_first_probe(found)
    known = {
        place - 1: finished(found.widths(place - 1, {}), 0.5),
        place: finished(found.widths(place, {}), 0.6 if wins else 0.4),
    }
    after = found.widths(place + 1, known)
    assert bool(after[BLOCKS[0]]) is not wins
    assert after == found.widths(place + 1, {place: known[place]} if wins else {})


def test_of_equals_the_one_with_fewer_blocks_leads_on() -> None:
    found = Opening(Strategy(scouts=0), ALLOCATOR, recipes(), budget=100, blocks=BLOCKS, noise=0.01)
    place = place_of_first_probe(found)
    plain = finished(found.widths(place - 1, {}), 0.5)
    for score, dropped in ((0.495, True), (0.485, False)):
        probe = finished(found.widths(place, {}), score)
        after = found.widths(place + 1, {place - 1: plain, place: probe})
        assert (not after[BLOCKS[0]]) is dropped


def test_no_step_is_smaller_than_the_least() -> None:
    found = opening(scouts=3)
    sizes = [ALLOCATOR.cost.params(found.widths(p, {})) for p in range(len(found.steps))]
    assert min(sizes) >= found.least_params


def test_no_probes_where_there_is_nothing_to_drop() -> None:
    plain = Opening(Strategy(), ALLOCATOR, recipes(), budget=100, blocks=())
    assert not any(step.probe for step in plain.steps)
    assert not any(step.probe for step in opening(probes=0).steps)
    assert not any(step.probe for step in opening(4, scouts=0).steps)


# --- strategies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("scouts", -1, "whole number of at least 0"),
        ("scouts", 1.5, "whole number of at least 0"),
        ("probes", -1, "whole number of at least 0"),
        ("proposals", 0, "whole number of at least 1"),
        ("chain_share", 1.5, "between 0 and 1"),
    ],
)
def test_a_strategy_follows_its_rules(name: str, value: float, rule: str) -> None:
    with pytest.raises(AutopruneError, match=rf"`strategy.{name}` must be .*{rule}"):
        replace(Strategy(), **{name: value})
