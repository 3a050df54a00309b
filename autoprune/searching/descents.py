"""The first trials: which learning rate is right, and descents over the whole range of sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.depth import Depth
from autoprune.searching.recipes import EPOCHS, Recipes
from autoprune.searching.strategy import Strategy

Floats = npt.NDArray[np.float64]

LARGEST = 0.5
"""The chain's first size, as a share of the dense parameters."""
SMALLEST = 1 / 316
"""Its last, unless the network cannot get that small."""
FIRST_SCOUT = 1 / 8
"""The scouts' first size."""
SCOUTS_WORTH = 20
"""A budget must be worth so many times the scouts, or there are fewer: they help the front early,
not in the end."""
PROBES_WORTH = 10
"""A budget must be worth so many times all models that only try a learning rate."""
PROBE_STEP = 1.05
"""How much larger each of these is than the one before, so that none inherits from another."""
CHAIN_SHARE, CHAIN_SIZES, MOST_OF_BUDGET = 0.5, 16, 0.9
"""The chain takes that share of the budget. But it is to have so many sizes, even if they take up
to so much of it: with larger steps, too much is lost at each."""
ETAS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""How a size is spread, the usual one first. Small plans are coarse: one of another allocation may
come nearer to the size, which matters more than the allocation."""
NEAR = 0.98
"""What share of a size is near enough to it."""
COARSE = 1.02
"""How much larger than `SMALLEST` the last plan may be."""
NARROWER = 0.85
"""A plan that drops a block nests in the one before if it is at least this share of its size."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A trial of a descent."""

    widths: Mapping[str, int]
    share: float
    """Its size as a share of the dense parameters."""
    scout: bool
    """Whether it trains for as few epochs as the space allows, instead of as many as is usual."""
    rate: float | None = None
    """The learning rate that it is there to try; None takes the usual one."""


class Opening:
    """Models that try learning rates, the scouts, and the chain.

    Attributes
    ----------
    steps
        The trials that a search begins with.
    probes
        Those of them that try a learning rate; the first of a search.
    least_params
        The smallest of their sizes.

    Parameters
    ----------
    budget
        In epochs; where the space fixes the epochs of a trial, in trials.
    depth
        Which blocks a model of a size does without; None drops none.
    """

    def __init__(
        self,
        strategy: Strategy,
        allocator: Allocator,
        recipes: Recipes,
        *,
        budget: float,
        depth: Depth | None = None,
    ) -> None:
        self._allocator = allocator
        self._depth = depth
        least = allocator.least_params / allocator.dense_params
        self._smallest = max(least, COARSE * SMALLEST)
        fewest = recipes.with_epochs({}, 0.0).get(EPOCHS, 1)
        usual = recipes.usual(1.0).get(EPOCHS, 1)
        scouts = self._descent(strategy.scouts, first=FIRST_SCOUT, scout=True)
        scouts = scouts[: int(budget / (SCOUTS_WORTH * fewest))]
        # All or none: whoever goes on with a larger budget finds the same ones again.
        rates = recipes.rates() if strategy.try_rates else []
        afforded = budget >= PROBES_WORTH * fewest * len(rates)
        self.probes = self._probes(rates) if afforded else []
        if self.probes:
            scouts = scouts[1:]  # its size is theirs
            budget -= fewest * len(self.probes)
        share = strategy.chain_share
        if share is None:
            share = min(max(CHAIN_SHARE, CHAIN_SIZES * usual / budget), MOST_OF_BUDGET)
        count = max(round(share * budget / usual), min(int(budget), 4))
        chain = self._descent(count, first=LARGEST, scout=False)
        self.steps: list[Step] = self.probes + scouts + chain
        self.least_params = min(allocator.cost.params(step.widths) for step in self.steps)

    def _probes(self, rates: Sequence[float]) -> list[Step]:
        """Return a model for each learning rate, all of about the same size.

        Each is a little larger than the one before, and begins with the dense model's weights. None
        if the network has too few sizes below a half.
        """
        steps: list[Step] = []
        share = max(FIRST_SCOUT, self._smallest)
        gone = self._gone(share)
        while len(steps) < len(rates) and share < LARGEST:
            widths = self._largest(self._params(share), gone)
            size = self._share(widths)
            if not steps or size > steps[-1].share:
                steps.append(Step(widths=widths, share=size, scout=True, rate=rates[len(steps)]))
            share *= PROBE_STEP
        return steps if len(steps) == len(rates) else []

    def _params(self, share: float) -> int:
        return math.floor(share * self._allocator.dense_params + 1e-6)

    def _share(self, widths: Mapping[str, int]) -> float:
        return self._allocator.cost.params(widths) / self._allocator.dense_params

    def _descent(self, count: int, *, first: float, scout: bool) -> list[Step]:
        """Return `count` sizes in even steps down to the smallest, or fewer: each is smaller."""
        steps: list[Step] = []
        for share in _sizes(max(first, self._smallest), self._smallest, count):
            widths = self._widths(float(share), steps[-1].widths if steps else None)
            size = self._share(widths)
            if not steps or size < steps[-1].share:
                steps.append(Step(widths=widths, share=size, scout=scout))
        return steps

    def _widths(self, share: float, before: Mapping[str, int] | None) -> dict[str, int]:
        """Return a plan of about a share of the dense parameters, and of no more if there is one.

        It nests in the plan `before`, to be cut from it; where a block goes, the others are made
        wider instead if they had to be much narrower.
        """
        cost = self._allocator.cost
        gone = self._gone(share)
        params = self._params(share)
        if before is not None:
            nested = self._largest(params, {**before, **gone})
            same = all(not before[block] for block in gone)
            if same or cost.params(nested) >= NARROWER * params:
                return nested
        return self._largest(params, gone)

    def _gone(self, share: float) -> dict[str, int]:
        """Return the blocks that a size does without, with a width of 0."""
        return dict.fromkeys(self._depth.dropped(share) if self._depth is not None else (), 0)

    def _largest(self, params: int, at_most: Mapping[str, int]) -> dict[str, int]:
        """Return the largest plan of at most so many parameters; else the smallest there is."""
        cost = self._allocator.cost
        dense = dict(zip(cost.names, cost.channels.tolist(), strict=True))
        ceiling, size = {**dense, **at_most}, cost.params
        plans: list[dict[str, int]] = []
        for eta in ETAS:
            plans.append(self._allocator.widths(params, Shape(eta=eta), at_most=ceiling))
            if size(plans[-1]) >= NEAR * params:
                break
        return max(plans, key=size)


def _sizes(first: float, last: float, count: int) -> Floats:
    """Return `count` descending sizes in about even steps, among them a half, a quarter, an eighth.

    For these people ask; they are there if steps are not larger.

    >>> (1 / _sizes(1 / 2, 1 / 100, 9)).round(1).tolist()
    [2.0, 4.0, 5.7, 8.0, 16.0, 22.6, 32.0, 64.0, 100.0]
    """
    even = np.geomspace(first, last, count)
    if count < 2 or not 1 < even[0] / even[1] <= 2:
        return even
    logs = np.log2(even)
    anchors = {0: logs[0], count - 1: logs[-1]}
    for power in range(-1, math.floor(logs[-1]), -1):
        anchors.setdefault(int(np.argmin(np.abs(logs - power))), power)
    places = sorted(anchors)
    sizes: Floats = np.interp(np.arange(count), places, [anchors[place] for place in places])
    return 2.0**sizes
