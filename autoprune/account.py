"""The account of a search's epochs: trials of every end and the final stage draw on it."""

from __future__ import annotations

import math

from autoprune.pool import Pool
from autoprune.searching.candidate import Candidate


class Account:
    """What has been spent of a budget of epochs, and what of it is reserved.

    Parameters
    ----------
    budget
        Epochs to train in all, the final stage's included; None bounds nothing.
    final_epochs
        Epochs that the final stage will want for each model of the front.

    Attributes
    ----------
    spent
        Epochs that ended trials have trained.
    final_epochs
        As given.
    """

    def __init__(self, pool: Pool, *, budget: int | None, final_epochs: int) -> None:
        self.budget = budget
        self.spent = 0
        self._pool = pool
        self.final_epochs = final_epochs

    def left(self, *, under_way: int) -> float:
        """Return the epochs a new trial may take: neither spent, nor under way, nor reserved."""
        if self.budget is None:
            return math.inf
        return self.budget - self.spent - under_way - self.reserved()

    def reserved(self) -> int:
        """Return how many epochs the final stage of the front as it is will want."""
        if not self.final_epochs:
            return 0
        return self.final_epochs * len(self._pool.without_final())

    def affordable(self, candidates: list[Candidate], epochs: int) -> list[Candidate]:
        """Return those who can be trained for `epochs` more each; the lowest scores go first."""
        if self.budget is None:
            return candidates
        count = max(self.budget - self.spent, 0) // epochs
        return self._pool.lowest_first(candidates)[:count]
