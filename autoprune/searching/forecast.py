"""What proposals would come to, learnt from what the search has finished.

A model is compared with the front: what the front offers at its size, and how much there is to gain
there at all. So what is learnt of one size, such as what twice the epochs are worth, says something
of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autoprune.searching.allocation import Allocator
from autoprune.searching.history import Finished, front
from autoprune.searching.moves import Proposal
from autoprune.searching.recipes import EPOCHS, Recipes, position
from autoprune.searching.surrogate import Prediction, Surrogate

Floats = npt.NDArray[np.float64]

DOUBLINGS = 1.5
"""Unit of epochs, in doublings: over a feature's unit, scores are alike."""
TRENDS = 1
"""The first feature, a trial's own epochs, has a linear trend."""
DOUBT = 2.0
"""How many forecasts' errors must be known to believe half of their mean."""
DECADES = 0.6
"""Unit of the size and of the cut, in decades of parameters."""
DEFICIT = 0.5
"""Unit of how far the parent is below the front, in headrooms."""
RECIPE = 0.5
"""Unit of a recipe's numbers, in ranges."""
OTHER_CHOICE = 0.7
"""How far apart two choices of a recipe are."""
TILT = 0.5
"""Unit of the allocation's tilts, in natural logs of widths."""
LEAST_HEADROOM = 0.03
"""Of the front's spread, what can be gained even where it is at its best."""


class Forecast:
    """Predicts scores of proposals from finished trials.

    It corrects itself by what earlier forecasts were off: proposals are chosen for what is expected
    of them, and so are those of which too much is.

    Parameters
    ----------
    finished
        What is learnt from; its front has at least two members.
    epochs
        Of a trial, where the space fixes them.
    noise
        Standard error of a score.
    """

    def __init__(
        self,
        finished: Sequence[Finished],
        *,
        allocator: Allocator,
        recipes: Recipes,
        blocks: Sequence[str],
        epochs: int | None,
        noise: float,
    ) -> None:
        self._allocator = allocator
        self._recipes = recipes
        self._blocks = tuple(blocks)
        self._epochs = epochs
        members = front(finished)
        self._sizes = np.log10([f.params for f in members])
        self._scores = np.array([f.score for f in members])
        sizes = np.log10([f.params for f in finished])
        scores = np.array([f.score for f in finished])
        room = self._headroom(sizes)
        self._surrogate = Surrogate(
            np.array([self._row(f.widths, f.recipe, f.parent, f.epochs) for f in finished]),
            (scores - self._offered(sizes)) / room,
            noise=noise / room,
            trends=TRENDS,
        )
        told = [(f, f.predicted) for f in finished if f.predicted is not None]
        errors = np.array([f.score - predicted for f, predicted in told])
        at = np.log10([f.params for f, _ in told])
        self._bias = float((errors / self._headroom(at)).sum()) / (len(told) + DOUBT)

    def predict(self, proposals: Sequence[Proposal]) -> Prediction:
        """Return the scores to expect, higher is better."""
        found = self._surrogate.predict(
            np.array([self._row(p.widths, p.recipe, p.parent, self.epochs(p)) for p in proposals])
        )
        sizes = np.log10([self._allocator.cost.params(p.widths) for p in proposals])
        room = self._headroom(sizes)
        # Nothing is expected to be better than the best there is, however far a trend would go.
        expected = self._offered(sizes) + room * (found.mean + self._bias)
        mean = np.minimum(expected, self._scores[-1])
        return Prediction(mean=mean, std=room * found.std)

    def epochs(self, proposal: Proposal) -> int:
        """Return how many epochs a proposal would train."""
        return int(proposal.recipe[EPOCHS]) if self._epochs is None else self._epochs

    def _offered(self, sizes: Floats) -> Floats:
        """Return the front's score at sizes; below its smallest model, along its last slope."""
        inside = np.interp(sizes, self._sizes, self._scores)
        slope = (self._scores[1] - self._scores[0]) / (self._sizes[1] - self._sizes[0])
        below = np.minimum(sizes - self._sizes[0], 0.0)
        return np.asarray(inside + slope * below)

    def _headroom(self, sizes: Floats) -> Floats:
        """Return how much there is to gain at sizes: what larger models are better by."""
        spread = float(self._scores[-1] - self._scores[0])
        least = max(LEAST_HEADROOM * spread, 1e-9)
        return np.asarray(np.maximum(self._scores[-1] - self._offered(sizes), 0.0) + least)

    def _row(
        self,
        widths: Mapping[str, int],
        recipe: Mapping[str, Any],
        parent: Finished | None,
        epochs: int,
    ) -> list[float]:
        """Return the features of one trial, each in units over which scores are alike."""
        params = self._allocator.cost.params(widths)
        started = parent.params if parent else self._allocator.dense_params
        lineage = epochs + (parent.lineage_epochs if parent else 0)
        return [
            math.log2(1 + epochs) / DOUBLINGS,
            math.log2(1 + lineage) / DOUBLINGS,
            math.log10(params) / DECADES,
            math.log10(max(started / params, 1.0)) / DECADES,
            self._deficit(parent) / DEFICIT,
            *self._recipe_row(recipe),
            *(tilt / TILT for tilt in self._allocator.tilts(widths)),
            *(float(widths[block]) for block in self._blocks),
        ]

    def _deficit(self, parent: Finished | None) -> float:
        if parent is None:
            return 0.0
        size = np.log10([parent.params])
        return float((self._offered(size) - parent.score)[0] / self._headroom(size)[0])

    def _recipe_row(self, recipe: Mapping[str, Any]) -> list[float]:
        found: list[float] = []
        for name, distribution in self._recipes.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                found += [OTHER_CHOICE * (recipe[name] == c) for c in distribution.choices]
            elif name != EPOCHS:
                assert isinstance(distribution, (FloatDistribution, IntDistribution))
                found.append(position(distribution, recipe[name]) / RECIPE)
        return found
