"""What proposals would come to, learnt from what the search has finished.

A model is compared with the front: what the front offers at its size, and how much there is to gain
there at all. So what is learnt of one size, such as what twice the epochs are worth, says something
of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autoprune.searching.allocation import Allocator
from autoprune.searching.history import Finished, front, trains_on
from autoprune.searching.moves import Proposal
from autoprune.searching.recipes import EPOCHS, Recipes, position
from autoprune.searching.surrogate import LIMIT, Prediction, Surrogate

Floats = npt.NDArray[np.float64]

DOUBLING_GAIN = 0.15
"""What twice the epochs since the last cut are believed to gain at first, in headrooms."""
CUT_LOSS = 1.0
"""What a cut is believed to lose at first, in headrooms for a decade of parameters."""
DOUBT = 2.0
"""How many forecasts' errors must be known to believe half of their mean."""
DOUBLINGS = 1.5
"""Unit of epochs, in doublings: over a feature's unit, scores are alike."""
DECADES = 0.6
"""Unit of the size, in decades of parameters."""
DEFICIT = 0.5
"""Unit of how far the parent is below the front, in headrooms."""
RECIPE = 1.0
"""Unit of a recipe's numbers, in ranges."""
OTHER_CHOICE = 0.5
"""How far apart two choices of a recipe are."""
TILT = 1.0
"""Unit of the allocation's tilts, in natural logs of widths."""
LEAST_HEADROOM = 0.15
"""Of the front's spread, what can be gained even where it is at its best."""
BELIEFS: Floats = np.array([DOUBLING_GAIN, 0.0, -CUT_LOSS, DOUBLING_GAIN])
"""Slopes that are believed at first: of doublings of the epochs since the cut, for a model trained
on; then, for one that is cut, of being cut at all, of the cut in decades, and of doublings of its
epochs over those that the front has had at its size since the cut."""
LEARNT = 3
"""How many of these slopes are learnt, from the first on. What a cut model's epochs are worth is
not: only scouts had few, and they differ in more than that."""
WORST = -0.5
"""How far below what it is compared with a trial may be, in headrooms; worse is just as bad."""


@dataclass(frozen=True)
class _Trial:
    """A trial, finished or proposed, as far as it is known before."""

    widths: Mapping[str, int]
    params: int
    recipe: Mapping[str, Any]
    parent: Finished | None
    epochs: int


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
        finished = finished[-LIMIT:]
        self._sizes = np.log10([f.params for f in members])
        self._scores = np.array([f.score for f in members])
        self._settled = np.log2([f.settled_epochs for f in members])
        trials = [_Trial(f.widths, f.params, f.recipe, f.parent, f.epochs) for f in finished]
        start, room = self._start_and_headroom(trials)
        causes = self._causes(trials)
        scores = np.array([f.score for f in finished])
        self._surrogate = Surrogate(
            np.column_stack([causes, self._rows(trials)]),
            np.maximum((scores - start) / room, WORST) - causes @ BELIEFS,
            noise=noise / room,
            trends=LEARNT,
        )
        told = [(f, f.predicted) for f in finished if f.predicted is not None]
        errors = np.array([f.score - predicted for f, predicted in told])
        at = np.log10([f.params for f, _ in told])
        self._bias = float((errors / self._headroom(at)).sum()) / (len(told) + DOUBT)

    def predict(self, proposals: Sequence[Proposal]) -> Prediction:
        """Return the scores to expect, higher is better."""
        trials = [_Trial(p.widths, p.params, p.recipe, p.parent, self.epochs(p)) for p in proposals]
        start, room = self._start_and_headroom(trials)
        causes = self._causes(trials)
        found = self._surrogate.predict(np.column_stack([causes, self._rows(trials)]))
        expected = start + room * (causes @ BELIEFS + found.mean + self._bias)
        # However far a trend would go, nothing is expected to be beyond all headroom.
        return Prediction(mean=np.minimum(expected, start + room), std=room * found.std)

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

    def _start_and_headroom(self, trials: Sequence[_Trial]) -> tuple[Floats, Floats]:
        """Return what a trial is compared with, and what there is to gain at its size.

        One that trains its parent on is compared with the parent, another with what the front
        offers at its size.
        """
        sizes = np.log10([t.params for t in trials])
        offered = self._offered(sizes)
        start = [
            t.parent.score if trains_on(t.parent, t.widths) else float(at)
            for t, at in zip(trials, offered, strict=True)
        ]
        return np.array(start), self._headroom(sizes)

    def _causes(self, trials: Sequence[_Trial]) -> Floats:
        """Return what scores follow linearly, one row a trial: see `BELIEFS`."""
        return np.array([self._cause(trial) for trial in trials])

    def _cause(self, trial: _Trial) -> list[float]:
        parent = trial.parent
        if trains_on(parent, trial.widths):
            before = max(parent.settled_epochs, 1)
            return [math.log2((before + trial.epochs) / before), 0.0, 0.0, 0.0]
        started = parent.params if parent else self._allocator.dense_params
        size = math.log10(trial.params)
        doublings = math.log2(trial.epochs) - float(np.interp(size, self._sizes, self._settled))
        return [0.0, 1.0, math.log10(max(started / trial.params, 1.0)), doublings]

    def _rows(self, trials: Sequence[_Trial]) -> Floats:
        """Return features in units over which scores are alike, [trials, features]."""
        known = [
            [
                math.log2(trial.epochs) / DOUBLINGS,
                math.log10(trial.params) / DECADES,
                self._deficit(trial.parent) / DEFICIT,
                *self._recipe_row(trial.recipe),
            ]
            for trial in trials
        ]
        rows = np.array([self._allocator.cost.row(trial.widths) for trial in trials])
        blocks = [[float(trial.widths[block]) for block in self._blocks] for trial in trials]
        return np.column_stack([known, self._allocator.tilts_of(rows) / TILT, blocks])

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
