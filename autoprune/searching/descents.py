"""The first trials: descents over the whole range of sizes, each model cut from the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.history import Finished
from autoprune.searching.recipes import EPOCHS, Recipes
from autoprune.searching.strategy import Strategy

LARGEST = 0.5
"""The chain's first size, as a share of the dense parameters."""
SMALLEST = 1 / 316
"""Its last, unless the network cannot get that small."""
FIRST_SCOUT = 0.4
"""The scouts' first size."""
SCOUTS_WORTH = 16
"""A budget must be worth so many times the scouts: they help the front early, not in the end."""
BEND = 0.75
"""How the chain's steps shrink: the log of the size falls as this power of the place along it, as
accuracy hardly falls at first. 1 makes even steps."""
CHAIN_EPOCHS = (0.3, 0.6)
"""Where the epochs of the chain's second and last model lie between fewest and most."""
RECOVERY_AT = 0.6
"""Where the epochs of the chain's first model lie: no cut after it is as large, and all the others
inherit what it has made good."""
FIRST_PROBE, LAST_PROBE = 0.4, 0.8
"""Where along the chain the first and the last probe lie."""
DETOURS, DETOUR = 8, 1.05
"""How often, and by which factor, a size is raised whose plan is too small."""
LEAST_PROBED = 8
"""A chain must have so many sizes to be probed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A trial of a descent."""

    share: float
    """Its size as a share of the dense parameters."""
    epochs_at: float
    """Where its epochs lie between fewest (0) and most (1) that the space allows."""
    probe: bool = False
    """Whether it lacks one block more than the step before it, of the same size."""


class Opening:
    """The scouts, and the chain with its probes.

    A probe is a second model of one size that lacks a further residual block: the one that has
    most parameters there. The chain goes on from the better of the two.

    Attributes
    ----------
    least_params
        The smallest size of a descent.

    Parameters
    ----------
    budget
        In epochs; where the space fixes the epochs of a trial, in trials.
    blocks
        Those that may be dropped.
    noise
        Scores that differ by no more are taken as equal.
    """

    def __init__(
        self,
        strategy: Strategy,
        allocator: Allocator,
        recipes: Recipes,
        *,
        budget: float,
        blocks: Sequence[str],
        noise: float = 0.0,
    ) -> None:
        self._noise = noise
        self._allocator = allocator
        self._blocks = tuple(blocks)
        self.least_params = _least_params(allocator)
        scouts = _descent(strategy.scouts, allocator, first=FIRST_SCOUT, epochs_at=(0.0, 0.0))
        if _epochs_of(scouts, recipes) * SCOUTS_WORTH > budget:
            scouts = []
        probes = strategy.probes if blocks else 0
        usual = _chain(20, allocator, by_size=strategy.epochs_by_size)
        each = _epochs_of(_probed(usual, probes), recipes) / len(usual)
        count = max(min(int(budget), 4), round(strategy.chain_share * budget / each))
        chain = _chain(count, allocator, by_size=strategy.epochs_by_size)
        self.steps: list[Step] = scouts + _probed(chain, probes)

    def widths(self, place: int, finished: Mapping[int, Finished]) -> dict[str, int]:
        """Return the widths of a step, given what is finished of the ones before by place."""
        step = self.steps[place]
        dropped = self._dropped(place, finished)
        found = self._of(step.share, dropped)
        if not step.probe:
            return found
        savings = {
            block: self._allocator.cost.params(found)
            - self._allocator.cost.params({**found, block: 0})
            for block in self._blocks
            if found[block]
        }
        if not savings:
            return found
        return self._of(step.share, dropped | {max(savings, key=lambda block: savings[block])})

    def _dropped(self, place: int, finished: Mapping[int, Finished]) -> set[str]:
        """Return which blocks the better model of the last probe before `place` lacks."""
        if self.steps[place].probe:
            place -= 1  # it shares its size with the step before, and lacks one block more
        for probe in reversed([p for p in range(place) if self.steps[p].probe]):
            tried = [finished[p] for p in (probe - 1, probe) if p in finished]
            if tried:
                best = max(tried, key=lambda f: f.score)
                if tried[-1].score >= best.score - self._noise:
                    best = tried[-1]  # of equals the one with fewer blocks: it goes further down
                return {block for block in self._blocks if not best.widths[block]}
        return set()

    def _of(self, share: float, dropped: set[str]) -> dict[str, int]:
        dense = dict(zip(self._allocator.cost.names, self._allocator.cost.channels, strict=True))
        ceiling = {name: 0 if name in dropped else int(count) for name, count in dense.items()}
        target = round(share * self._allocator.dense_params)
        widths = self._allocator.widths(target, Shape(), at_most=ceiling)
        # Sizes are coarse among the smallest: rather a larger plan than one that is too small.
        for _ in range(DETOURS):
            if self._allocator.cost.params(widths) >= self.least_params:
                break
            target = math.ceil(DETOUR * target)
            widths = self._allocator.widths(target, Shape(), at_most=ceiling)
        return widths


def _descent(
    count: int, allocator: Allocator, *, first: float, epochs_at: tuple[float, float]
) -> list[Step]:
    """Return `count` sizes in geometric steps down to the smallest, each plan once."""
    dense = allocator.dense_params
    least = _least_params(allocator) / dense
    steps: list[Step] = []
    before: dict[str, int] = {}
    along = np.linspace(0, 1, count)
    shares = max(first, least) ** (1 - along**BEND) * least ** (along**BEND)
    for at, share in zip(np.linspace(*epochs_at, count), shares, strict=True):
        # A share that rounding puts below the smallest plan still means that one.
        widths = allocator.widths(max(round(float(share) * dense), allocator.least_params), Shape())
        if widths != before:
            steps.append(Step(share=allocator.cost.params(widths) / dense, epochs_at=float(at)))
        before = widths
    return steps


def _chain(count: int, allocator: Allocator, *, by_size: bool) -> list[Step]:
    if not by_size:
        return _descent(count, allocator, first=LARGEST, epochs_at=(0.5, 0.5))
    first, *others = _descent(count, allocator, first=LARGEST, epochs_at=CHAIN_EPOCHS)
    return [replace(first, epochs_at=RECOVERY_AT), *others]


def _least_params(allocator: Allocator) -> int:
    """Return the smallest size that a search is about."""
    return max(allocator.least_params, math.ceil(allocator.dense_params * SMALLEST))


def _probed(chain: Sequence[Step], probes: int) -> list[Step]:
    """Return the chain with probes after some of its steps, evenly spread."""
    if len(chain) < LEAST_PROBED:
        return list(chain)
    last = len(chain) - 1
    after = {round(at * last) for at in np.linspace(FIRST_PROBE, LAST_PROBE, probes)}
    found: list[Step] = []
    for number, step in enumerate(chain):
        found.append(step)
        if number in after:
            found.append(replace(step, probe=True))
    return found


def _epochs_of(steps: Sequence[Step], recipes: Recipes) -> float:
    """Return the epochs of a descent; where the space fixes them, its trials."""
    return float(sum(recipes.with_epochs({}, step.epochs_at).get(EPOCHS, 1) for step in steps))
