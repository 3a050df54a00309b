"""Stopping: a trial that is far behind a cheaper one gives its epochs to others.

Optuna has no pruning for several objectives, so the rule is ours. A trial's leader is the best
finished one that costs no more in any way: a trial that does not get past it cannot reach the
front. Learning curves fall by factors, not by differences, so that what is compared is the error:
how much a score lacks to the best that was seen, and to a few times the scores' own noise beyond
that. A trial is stopped when its error is several times the leader's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.searching.candidate import Candidate
from autoprune.searching.objectives import cost_of


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Stop a trial whose error is `behind` times that of a finished one that costs no more.

    The leader's error is the geometric mean of what it was at the same share of its own epochs and
    of what it was in the end: the first alone would favour trials that start from good weights, the
    second alone those that have trained for long. The numbers were set on half of the runs that
    ``benchmarks/stopping.py`` replays.
    """

    higher_is_better: bool
    behind: tuple[float, float] = (3.0, 2.0)
    """How many times the leader's error is too much: at first, and in the end."""
    noises: float = 3.0
    """How far beyond the best score error begins, in units of the scores' noise."""
    experience: int = 3
    """How many finished trials there must be to know that noise."""

    def rungs(self, epochs: int) -> range:
        """Return the epochs after which a trial may be stopped: none for trials of one or two.

        >>> StoppingRule(higher_is_better=True).rungs(5)
        range(1, 5)
        """
        return range(1, epochs if epochs > 2 else 1)

    def dominated(
        self,
        *,
        costs: Mapping[str, float],
        epochs: int,
        curve: Sequence[float],
        completed: Iterable[Candidate],
        earlier_epochs: int = 0,
    ) -> bool:
        """Return whether a trial should stop now.

        Parameters
        ----------
        costs
            What the trial costs, by the objective's name, as far as it is known.
        epochs
            How many epochs it was to train.
        curve
            Its validation scores: after the cut to its widths, then after each epoch.
        completed
            Finished trials, of whatever size and number of epochs.
        earlier_epochs
            How many of the epochs went to wider models, of earlier pruning steps.
        """
        rung, left = len(curve) - 1, epochs - earlier_epochs
        if rung not in self.rungs(left):
            return False
        sign = 1.0 if self.higher_is_better else -1.0
        finished = [(c, [sign * s for s in c.curve]) for c in completed if len(c.curve) > 1]
        cheaper = [
            scores
            for other, scores in finished
            if all(cost_of(other.score, name) <= cost for name, cost in costs.items())
        ]
        noise = noise_of([scores for _, scores in finished])
        if len(finished) < self.experience or not cheaper or not noise:
            return False
        leader = max(cheaper, key=lambda scores: scores[-1])
        perfect = max(scores[-1] for _, scores in finished) + self.noises * noise

        def error(score: float) -> float:
            return max(perfect - score, noise)

        share = rung / left
        there = float(np.interp(share * (len(leader) - 1), np.arange(len(leader)), leader))
        early, late = self.behind
        too_much = math.exp((1 - share) * math.log(early) + share * math.log(late))
        reached = math.sqrt(error(there) * error(leader[-1]))
        return error(sign * curve[-1]) > too_much * reached


def noise_of(curves: Sequence[Sequence[float]]) -> float:
    """Return how much scores change by chance from one epoch to the next.

    That is the root mean square of the steps in the second halves of finished curves, when there is
    little left to learn. A score's grain is in it: on few samples, one of them is a large step.

    >>> noise_of([[0.0, 0.5, 0.75, 1.0, 0.75], [0.2, 0.3]])
    0.25
    """
    halves = [np.diff(curve[len(curve) // 2 :]) for curve in curves]
    steps = np.concatenate([*halves, np.zeros(0)])
    return float(np.sqrt(np.mean(steps**2))) if len(steps) else 0.0
