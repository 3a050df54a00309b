"""Moves that refine a front: a member trained on, or a new model inside a gap of the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.attributes import PARAMS
from autoprune.searching.history import Finished, front
from autoprune.searching.lineage import Parents
from autoprune.searching.recipes import Recipes
from autoprune.searching.space import SearchSpace

Floats = npt.NDArray[np.float64]

TRAIN_ON_SHARE = 0.4
"""Share of the moves that train a front member on."""
MUTATION_SHARE = 0.4
"""Share of the new models whose widths are a neighbour's, changed; the rest are of the family."""
DROP_SHARE = 0.25
"""Share of the new models that drop a block, too, where blocks may be dropped."""
LAMP_SHARE = 0.15
"""Share of the new models that are spread by LAMP scores."""
KNOWN_RECIPE_SHARE = 0.5
"""Share of the recipes that are near a neighbour's; the rest are near what is usual."""
EPOCHS_AT = (0.7, 1.0)
"""Where the epochs lie between fewest (0) and most (1) that the space allows: a front member gains
nothing from few."""
SPREAD, EXPLORE = 0.12, 0.25
"""How far recipes go from a known one; see `Recipes.near`."""
MUTATION = 0.25
"""Standard deviation of a mutated width's logarithm."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial that might be run."""

    widths: Mapping[str, int]
    params: int
    recipe: Mapping[str, Any]
    parent: Finished | None
    """Whose weights it would begin with; None for the dense model's."""


class Moves:
    """Draws proposals from a front.

    Parameters
    ----------
    finished
        All that is finished; it has a front.
    cost
        The cost whose gaps are filled.
    least_params
        No new model is meant to be smaller. It may be all the same, as sizes are coarse, and so
        may a member that is trained on: `draw_many` leaves such proposals out.
    inherit
        Whether trials begin with the weights of finished ones; else all with the dense model's.
    """

    def __init__(
        self,
        finished: Sequence[Finished],
        members: Sequence[Finished],
        *,
        cost: str,
        space: SearchSpace,
        allocator: Allocator,
        recipes: Recipes,
        least_params: int,
        inherit: bool = True,
    ) -> None:
        self._least = least_params
        self._front = members
        self._cost = cost
        self._parents = Parents(front(finished, PARAMS) if inherit else [])
        self._space = space
        self._allocator = allocator
        self._recipes = recipes

    @cached_property
    def _gains(self) -> Floats:
        """What each gap of the front could still gain, as a share of all."""
        costs = np.log([f.costs[self._cost] for f in self._front])
        rise = np.diff([f.score for f in self._front])
        # As much of the log-cost as it is wide, as much score as it is high; a little of the width
        # alone, for gaps between equals.
        gain = np.diff(costs) * (rise + 0.05 * max(float(rise.max()), 1e-9))
        return np.asarray(gain / gain.sum())

    def draw(self, rng: np.random.Generator) -> Proposal:
        """Draw one proposal."""
        if len(self._front) < 2 or rng.random() < TRAIN_ON_SHARE:
            near = self._front[int(rng.integers(len(self._front)))]
            widths = near.widths
        else:
            near, widths = self._in_a_gap(rng)
        recipe, params = near.recipe, self._allocator.cost.params(widths)
        if rng.random() >= KNOWN_RECIPE_SHARE:
            recipe = {**recipe, **self._recipes.usual(params / self._allocator.dense_params)}
        recipe = self._recipes.near(rng, recipe, spread=SPREAD, explore=EXPLORE)
        return Proposal(
            widths=widths,
            params=params,
            recipe=self._recipes.with_epochs(recipe, float(rng.uniform(*EPOCHS_AT))),
            parent=self._parents.choose(widths),
        )

    def draw_many(self, rng: np.random.Generator, count: int) -> list[Proposal]:
        """Draw `count` proposals; return those that are not too small, or all if each is."""
        drawn = [self.draw(rng) for _ in range(count)]
        enough = [p for p in drawn if p.params >= self._least]
        return enough or drawn

    def _in_a_gap(self, rng: np.random.Generator) -> tuple[Finished, Mapping[str, int]]:
        """Draw a model between two neighbours of the front; return the larger one and its widths.

        With several costs the gap is one of score over this cost, and the size lies between those
        of the models on both sides of it.
        """
        gap = int(rng.choice(len(self._gains), p=self._gains))
        smaller, larger = self._front[gap], self._front[gap + 1]
        low, high = sorted(math.log(f.params) for f in (smaller, larger))
        target = max(int(np.exp(rng.uniform(low, high))), self._least)
        ceiling = dict(larger.widths)
        left = [block for block in self._space.blocks if ceiling[block]]
        if left and rng.random() < DROP_SHARE:
            ceiling[left[int(rng.integers(len(left)))]] = 0
        if self._allocator.knows_lamp and rng.random() < LAMP_SHARE:
            return larger, self._allocator.lamp_widths(target, at_most=ceiling)
        if rng.random() < MUTATION_SHARE:
            return larger, self._mutated(rng, smaller, ceiling, target)
        shape = Shape(eta=rng.uniform(0.2, 0.9), beta=rng.normal(0, 0.3), kappa=rng.normal(0, 0.3))
        return larger, self._allocator.widths(target, shape, at_most=ceiling)

    def _mutated(
        self,
        rng: np.random.Generator,
        near: Finished,
        ceiling: Mapping[str, int],
        target: int,
    ) -> Mapping[str, int]:
        """Return a neighbour's widths with some groups wider or narrower, at a target size."""
        tilt = {
            name: near.widths[name] * math.exp(MUTATION * rng.normal())
            for name in self._space.channels
        }
        return self._allocator.widths_like(tilt, target, at_most=ceiling)
