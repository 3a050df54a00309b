"""What a surrogate sees of a trial: numbers in units over which scores are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autoprune.searching.allocation import Allocator
from autoprune.searching.history import Finished
from autoprune.searching.recipes import EPOCHS, Recipes, position

Floats = npt.NDArray[np.float64]

DECADES = 0.6
"""Unit of the size and of the cut, in decades of parameters."""
DOUBLINGS = 2.0
"""Unit of epochs, in doublings."""
RECIPE = 0.5
"""Unit of a recipe's numbers, in ranges."""
OTHER_CHOICE = 0.7
"""How far apart two choices of a recipe are."""
TILT = 0.5
"""Unit of the allocation's tilts, in natural logs of widths."""
BLOCK = 1.0
"""How far apart a model with a block is from one without."""
PARENT_SCORE = 1.0
"""Unit of the parent's score, in standard deviations of scores."""


class Features:
    """Turns trials, finished or proposed, into rows of numbers.

    Parameters
    ----------
    scores
        Of the finished trials and the dense model: the parent's score is measured in their spread.
    """

    def __init__(
        self,
        *,
        allocator: Allocator,
        recipes: Recipes,
        blocks: Sequence[str],
        dense_score: float,
        scores: Sequence[float],
    ) -> None:
        self._allocator = allocator
        self._recipes = recipes
        self._blocks = tuple(blocks)
        self._dense_score = dense_score
        self._mean = float(np.mean(scores))
        self._spread = float(np.std(scores)) or 1.0

    def row(
        self,
        widths: Mapping[str, int],
        recipe: Mapping[str, Any],
        parent: Finished | None,
        *,
        params: int,
        epochs: int,
    ) -> list[float]:
        """Return the features of one trial, [features]."""
        dense = self._allocator.dense_params
        size = math.log10(params / dense) / DECADES
        started = parent.params if parent else dense
        lineage = epochs + (parent.lineage_epochs if parent else 0)
        score = parent.score if parent else self._dense_score
        return [
            size,
            size**2 / 4,
            math.log2(1 + epochs) / DOUBLINGS,
            math.log2(1 + lineage) / DOUBLINGS,
            math.log10(started / params) / DECADES,
            (score - self._mean) / (self._spread * PARENT_SCORE),
            *self._recipe_row(recipe),
            *(tilt / TILT for tilt in self._allocator.tilts(widths)),
            *(BLOCK * widths[block] for block in self._blocks),
        ]

    def _recipe_row(self, recipe: Mapping[str, Any]) -> list[float]:
        found: list[float] = []
        for name, distribution in self._recipes.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                found += [OTHER_CHOICE * (recipe[name] == c) for c in distribution.choices]
            elif name != EPOCHS:
                assert isinstance(distribution, (FloatDistribution, IntDistribution))
                found.append(position(distribution, recipe[name]) / RECIPE)
        return found
