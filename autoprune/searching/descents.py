"""The first trials: descents over the whole range of sizes, each model cut from the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.depth import Depth
from autoprune.searching.recipes import EPOCHS, Recipes
from autoprune.searching.strategy import Strategy

LARGEST = 0.5
"""The chain's first size, as a share of the dense parameters."""
SMALLEST = 1 / 316
"""Its last, unless the network cannot get that small."""
FIRST_SCOUT = 1 / 8
"""The scouts' first size."""
SCOUTS_WORTH = 20
"""A budget must be worth so many times the scouts, or there are fewer: they help the front early,
not in the end."""
CHAIN_SHARE, CHAIN_SIZES, MOST_OF_BUDGET = 0.5, 20, 0.9
"""The chain takes that share of the budget. But it is to have so many sizes, even if they take up
to so much of it: with larger steps, too much is lost at each."""
CHAIN_EPOCHS = (0.65, 0.3)
"""Where the epochs of the chain's first and last model lie between fewest and most: all the others
inherit what the first ones have learnt. Their mean makes even epochs."""
DETOURS, DETOUR = 8, 1.05
"""How often, and by which factor, a size is raised whose plan is too small."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A trial of a descent."""

    widths: Mapping[str, int]
    share: float
    """Its size as a share of the dense parameters."""
    epochs_at: float
    """Where its epochs lie between fewest (0) and most (1) that the space allows."""


class Opening:
    """The scouts, and the chain.

    Attributes
    ----------
    steps
        The trials that a search begins with.
    least_params
        The smallest size of a descent.

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
        self._by_size = strategy.epochs_by_size
        smallest = math.ceil(allocator.dense_params * SMALLEST)
        self.least_params = max(allocator.least_params, smallest)
        scouts = self._descent(strategy.scouts, first=FIRST_SCOUT, epochs_at=(0.0, 0.0))
        fewest = recipes.with_epochs({}, 0.0).get(EPOCHS, 1)
        scouts = scouts[: int(budget / (SCOUTS_WORTH * fewest))]
        usual = self._chain(20)
        each = _epochs_of(usual, recipes) / len(usual)
        share = strategy.chain_share
        if share is None:
            share = min(max(CHAIN_SHARE, CHAIN_SIZES * each / budget), MOST_OF_BUDGET)
        count = max(round(share * budget / each), min(int(budget), 4))
        self.steps: list[Step] = scouts + self._chain(count)

    def _chain(self, count: int) -> list[Step]:
        epochs_at = CHAIN_EPOCHS if self._by_size else (sum(CHAIN_EPOCHS) / 2,) * 2
        return self._descent(count, first=LARGEST, epochs_at=epochs_at)

    def _descent(self, count: int, *, first: float, epochs_at: tuple[float, float]) -> list[Step]:
        """Return `count` sizes in geometric steps down to the smallest, each plan once."""
        dense = self._allocator.dense_params
        least = self.least_params / dense
        shares = np.geomspace(max(first, least), least, count)
        steps: list[Step] = []
        for at, share in zip(np.linspace(*epochs_at, count), shares, strict=True):
            widths = self._widths(float(share))
            if not steps or widths != steps[-1].widths:
                size = self._allocator.cost.params(widths) / dense
                steps.append(Step(widths=widths, share=size, epochs_at=float(at)))
        return steps

    def _widths(self, share: float) -> dict[str, int]:
        """Return the plan of a share of the dense parameters."""
        cost = self._allocator.cost
        ceiling = dict(zip(cost.names, cost.channels.tolist(), strict=True))
        if self._depth is not None:
            ceiling |= dict.fromkeys(self._depth.dropped(share), 0)
        # A share that rounding puts below the smallest plan still means that one.
        target = max(round(share * self._allocator.dense_params), self.least_params)
        widths = self._allocator.widths(target, Shape(), at_most=ceiling)
        # Sizes are coarse among the smallest: rather a larger plan than one that is too small.
        for _ in range(DETOURS):
            if cost.params(widths) >= self.least_params:
                break
            target = math.ceil(DETOUR * target)
            widths = self._allocator.widths(target, Shape(), at_most=ceiling)
        return widths


def _epochs_of(steps: Sequence[Step], recipes: Recipes) -> float:
    """Return the epochs of a descent; where the space fixes them, its trials."""
    return float(sum(recipes.with_epochs({}, step.epochs_at).get(EPOCHS, 1) for step in steps))
