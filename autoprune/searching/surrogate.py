"""What a trial would come to: a Gaussian process over size, training, recipe and allocation.

It has the trials of one search to learn from, a few dozen, and must answer for hundreds of
proposals in milliseconds. So its length scales are fixed, in units that mean the same everywhere
(decades of parameters, doublings of epochs), and what is left is linear algebra (Rasmussen and
Williams 2006, algorithm 2.1) around a linear trend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LIMIT = 256
"""How many trials it learns from: the latest ones. The cost grows with their cube."""
RIDGE = 2.0
"""How many trials' evidence the trend's slopes must outweigh to differ from 0."""
LEAST_NOISE = 2e-3
"""No score is taken as more exact than this, as a share of the scores' spread."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is expected of each proposal."""

    mean: Floats
    std: Floats


class Surrogate:
    """Predicts scores of proposals from those of finished trials.

    Parameters
    ----------
    features
        [trials, features], each divided by the distance over which scores are alike.
    scores
        [trials], better when higher.
    noise
        Standard error of each score, [trials], or of all.
    trends
        How many of the features, from the first on, have a linear trend. It is 0 where they are:
        a column of ones, first, makes it one with an intercept.

    Examples
    --------
    >>> x = np.linspace(0, 3, 7)[:, None]
    >>> surrogate = Surrogate(x, np.sin(x[:, 0]), noise=0.01, trends=1)
    >>> prediction = surrogate.predict(np.array([[1.25], [9.0]]))
    >>> bool(abs(prediction.mean[0] - np.sin(1.25)) < 0.05)
    True
    >>> bool(prediction.std[0] < prediction.std[1])
    True
    """

    def __init__(
        self, features: Floats, scores: Floats, *, noise: float | Floats, trends: int
    ) -> None:
        self._x = features[-LIMIT:]
        self._trends = trends
        y = scores[-LIMIT:]
        errors = np.broadcast_to(noise, scores.shape)[-LIMIT:]
        basis = self._x[:, :trends]
        self._slopes = np.linalg.solve(basis.T @ basis + RIDGE * np.eye(trends), basis.T @ y)
        left = y - basis @ self._slopes
        self._amplitude = max(float(left.std()), LEAST_NOISE * float(np.ptp(y)), 1e-9)
        errors = np.maximum(errors, LEAST_NOISE * self._amplitude)
        matrix = self._kernel(self._x, self._x) + np.diag(errors**2)
        self._factor = np.linalg.cholesky(matrix + 1e-9 * self._amplitude**2 * np.eye(len(y)))
        self._weights = np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, left))

    def predict(self, features: Floats) -> Prediction:
        """Return mean and standard deviation of the score of each row of [proposals, features]."""
        cross = self._kernel(features, self._x)
        mean = features[:, : self._trends] @ self._slopes + cross @ self._weights
        explained = np.linalg.solve(self._factor, cross.T)
        variance = self._amplitude**2 - (explained**2).sum(0)
        return Prediction(mean=mean, std=np.sqrt(np.maximum(variance, 1e-12)))

    def _kernel(self, a: Floats, b: Floats) -> Floats:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
        return np.asarray(self._amplitude**2 * np.exp(-0.5 * np.maximum(squares, 0.0)))


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """A front as what it offers at each cost: the best score of at most that cost."""

    log_costs: Floats
    """Ascending."""
    scores: Floats
    """Ascending, higher is better."""
    floor: float
    """The score that a front reaches where it has no model."""
    log_most: float
    """The largest cost that counts, such as the dense model's."""
    log_least: float = -math.inf
    """The smallest: less is worth nothing more."""

    def gains(self, log_costs: Floats, scores: Floats) -> Floats:
        """Return the hypervolume, log-cost times score, that each point would add to the front."""
        log_costs = np.maximum(log_costs, self.log_least)
        starts = np.append(self.log_costs, self.log_most)
        lower = np.concatenate([[-np.inf], self.log_costs])
        offered = np.concatenate([[self.floor], self.scores])
        widths = np.maximum(
            np.minimum(starts, self.log_most) - np.maximum(lower, log_costs[..., None]), 0.0
        )
        heights = np.maximum(scores[..., None] - offered, 0.0)
        return np.asarray((widths * heights).sum(-1))

    def expected_gains(self, log_costs: Floats, prediction: Prediction) -> Floats:
        """Return the gain to expect of each point, by its distribution's quantiles."""
        scores = prediction.mean[:, None] + prediction.std[:, None] * QUANTILES
        each = self.gains(np.repeat(log_costs[:, None], len(QUANTILES), 1), scores)
        return np.asarray(each.mean(1))


QUANTILES: Floats = np.array([-1.593, -0.967, -0.589, -0.282, 0.0, 0.282, 0.589, 0.967, 1.593])
"""Of the standard normal, at the middles of ninths."""


def staircase(
    points: Sequence[tuple[float, float]],
    *,
    floor: float,
    log_most: float,
    log_least: float = -math.inf,
) -> Staircase:
    """Build the staircase of a front's (cost, score) points, ascending in both.

    >>> steps = staircase([(10.0, 0.5), (100.0, 0.8)], floor=0.0, log_most=np.log(1000.0))
    >>> steps.gains(np.log([10.0, 100.0, 1000.0]), np.array([0.6, 0.8, 0.9])).round(3).tolist()
    [0.23, 0.0, 0.0]
    """
    return Staircase(
        log_costs=np.maximum(np.log([cost for cost, _ in points]), log_least),
        scores=np.array([score for _, score in points]),
        floor=floor,
        log_most=log_most,
        log_least=log_least,
    )
