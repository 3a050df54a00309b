"""Stopping: a trial that is clearly dominated at a rung gives its epochs to others.

Optuna has no pruning for several objectives, so the rule is ours: compare with completed trials
that cost no more in any way, at the same rung of their own curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoprune.searching.candidate import Candidate
from autoprune.searching.objectives import cost_of


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Stop a trial when enough completed trials that cost no more were better at the same rung."""

    higher_is_better: bool
    witnesses: int = 2
    """How many completed trials must have been better; one alone may have been lucky."""
    margin: float = 0.01
    """By how much, as a share of the witness's score."""
    first_rung: int = 2
    """No earlier: the score right after a cut says little about the end."""

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs at which a trial may be stopped: doubling, short of the last.

        >>> StoppingRule(higher_is_better=True).rungs(20)
        (2, 4, 8, 16)
        """
        found, rung = [], self.first_rung
        while rung < epochs:
            found.append(rung)
            rung *= 2
        return tuple(found)

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
        earlier_epochs
            How many of the epochs went to wider models, of earlier pruning steps. It is compared
            with trials that had as many.
        """
        rung = len(curve) - 1
        left = epochs - earlier_epochs
        if rung not in self.rungs(left):
            return False
        sign = 1.0 if self.higher_is_better else -1.0
        better = 0
        for other in completed:
            same = other.plan.finetune.epochs == epochs and len(other.curve) == left + 1
            cheaper = all(cost_of(other.score, name) <= cost for name, cost in costs.items())
            if same and cheaper:
                lead = sign * (other.curve[rung] - curve[rung])
                better += lead > self.margin * abs(other.curve[rung])
        return better >= self.witnesses
