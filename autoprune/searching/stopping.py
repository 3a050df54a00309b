"""Stopping: a trial that is far behind a cheaper one gives its epochs to others.

Optuna has no pruning for several objectives, so the rule is ours. A trial's leader is the best
finished one that costs no more in any way: a trial that does not get past it cannot reach the
front. Learning curves fall by factors, not by differences, so that what is compared is the error:
how much a score lacks to the best that was seen, and to a few times the scores' own noise beyond
that. A trial is stopped when its error has been much larger than the leader's in the end twice in a
row. How much is too much falls along its epochs, as what is lacking late will not be made up for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.searching.candidate import Candidate
from autoprune.searching.objectives import cost_of


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Stop a trial whose error is several times what that of a cheaper one was in the end.

    A trial that is ahead of where its leader was after the same share of its epochs goes on in any
    case, so that nothing is asked of how scores rise on a task. The numbers were set on one half of
    the runs that ``benchmarks/stopping.py`` replays.
    """

    higher_is_better: bool
    behind: tuple[float, float] = (6.0, 2.0)
    """How many times the leader's error is too much: at first, and in the end."""
    from_dense: float = 0.5
    """The same is so many times less for a trial that was cut from the dense model. Inherited
    weights recover more often: of trials that began at 3 to 6 times their leader's error, 15 of 41
    with and 20 of 138 without such weights ended better than it, in the runs mentioned."""
    in_a_row: int = 2
    """After how many epochs that must have been so: a single score says little."""
    noises: float = 3.0
    """How far beyond the best score error begins, in units of the scores' noise."""
    experience: int = 3
    """How many finished trials there must be to know that noise."""

    def rungs(self, epochs: int) -> range:
        """Return the epochs after which a trial may be stopped.

        >>> StoppingRule(higher_is_better=True).rungs(5)
        range(2, 5)
        """
        return range(self.in_a_row, max(epochs, self.in_a_row))

    def dominated(
        self,
        *,
        costs: Mapping[str, float],
        epochs: int,
        curve: Sequence[float],
        completed: Iterable[Candidate],
        inherits: bool,
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
        inherits
            Whether it was cut from the weights of a finished trial, not from the dense model's.
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
        early, late = self.behind
        patience = 1.0 if inherits else self.from_dense

        def error(score: float) -> float:
            return max(perfect - score, noise)

        def is_behind(epoch: int) -> bool:
            share = epoch / left
            there = float(np.interp(share * (len(leader) - 1), np.arange(len(leader)), leader))
            too_much: float = patience * early ** (1 - share) * late**share
            return error(sign * curve[epoch]) > max(too_much * error(leader[-1]), error(there))

        return all(is_behind(epoch) for epoch in range(rung + 1 - self.in_a_row, rung + 1))


def noise_of(curves: Sequence[Sequence[float]]) -> float:
    """Return how much scores change by chance from one epoch to the next.

    That is, for the median of finished trials, the root mean square of the steps in the second half
    of its curve, when there is little left to learn. A score's grain is in it: on few samples, one
    of them is a large step.

    >>> noise_of([[0.0, 0.5, 0.75, 1.0, 0.75], [0.2, 0.3]])
    0.25
    """
    halves = [np.diff(curve[len(curve) // 2 :]) for curve in curves]
    found = [float(np.sqrt(np.mean(steps**2))) for steps in halves if len(steps)]
    return float(np.median(found)) if found else 0.0
