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
REFINED, ALONE = (0.6, 0.3, 0.6), (0.65, 0.3)
"""Where the epochs of the chain's models lie between fewest and most, as `_spread` reads it: of a
chain that leaves enough to refine the front, large models included, and of one that does not. Of
both the first model gets many: all the others inherit what it has made good."""
MOST = 2 / 3
"""Such a chain has more than this share of the budget."""
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
        smallest = math.ceil(allocator.dense_params * SMALLEST)
        self.least_params = max(allocator.least_params, smallest)
        scouts = self._descent(strategy.scouts, first=FIRST_SCOUT, epochs_at=(0.0,))
        fewest = recipes.with_epochs({}, 0.0).get(EPOCHS, 1)
        scouts = scouts[: int(budget / (SCOUTS_WORTH * fewest))]
        share = strategy.chain_share
        if share is None:
            wanted = CHAIN_SIZES * self._epochs_each(REFINED, recipes) / budget
            share = min(max(CHAIN_SHARE, wanted), MOST_OF_BUDGET)
        epochs_at: Sequence[float] = ALONE if share > MOST else REFINED
        if not strategy.epochs_by_size:
            epochs_at = (sum(epochs_at) / len(epochs_at),)
        count = round(share * budget / self._epochs_each(epochs_at, recipes))
        chain = self._descent(max(count, min(int(budget), 4)), first=LARGEST, epochs_at=epochs_at)
        self.steps: list[Step] = scouts + chain

    def _epochs_each(self, epochs_at: Sequence[float], recipes: Recipes) -> float:
        """Return a chain's epochs a model; where the space fixes them, 1: they are trials then."""
        usual = self._descent(CHAIN_SIZES, first=LARGEST, epochs_at=epochs_at)
        epochs = [recipes.with_epochs({}, step.epochs_at).get(EPOCHS, 1) for step in usual]
        return float(np.mean(epochs))

    def _descent(self, count: int, *, first: float, epochs_at: Sequence[float]) -> list[Step]:
        """Return `count` sizes in geometric steps down to the smallest, each plan once.

        `epochs_at` holds the epochs of the first models and, from the last but one to the last,
        the ends of an even change over all others.
        """
        dense = self._allocator.dense_params
        least = self.least_params / dense
        shares = np.geomspace(max(first, least), least, count)
        steps: list[Step] = []
        for at, share in zip(_spread(epochs_at, count), shares, strict=True):
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


def _spread(values: Sequence[float], count: int) -> list[float]:
    """Return `count` values that change evenly from the last but one to the last of `values`.

    What is before these two takes the first places.

    >>> _spread((0.0, 1.0), 3), _spread((9.0, 0.0, 1.0), 3), _spread((0.5,), 2)
    ([0.0, 0.5, 1.0], [9.0, 0.5, 1.0], [0.5, 0.5])
    """
    *first, start, end = values if len(values) > 1 else (*values, *values)
    even = np.linspace(start, end, count).tolist()
    return [*first, *even[len(first) :]][:count]
