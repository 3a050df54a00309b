"""What a search has finished: its candidates, and those of their weights that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE, FINAL, Candidate
from autoprune.searching.lineage import choose_parent, needed_weights
from autoprune.searching.objectives import DEFAULT_COSTS
from autoprune.searching.pareto import front_of


class Pool:
    """The finished candidates of a search, and their weights in the store.

    Parameters
    ----------
    costs
        What the score is traded against, by the objectives' names.
    inherit
        Whether trials are cut from finished candidates; else all are from the dense model.

    Attributes
    ----------
    candidates
        What has been finished, by name. The weights of some have been dropped.
    higher_is_better
        Whether a higher score is a better one.
    """

    def __init__(
        self,
        store: Store,
        *,
        higher_is_better: bool,
        costs: Sequence[str] = DEFAULT_COSTS,
        inherit: bool = True,
    ) -> None:
        self.candidates: dict[str, Candidate] = {}
        self._store = store
        self.higher_is_better = higher_is_better
        self._costs = tuple(costs)
        self._inherit = inherit
        self._dropped: set[str] = set()
        """Candidates without weights: history, but nobody's parents."""

    def load(self, name: str) -> bool:
        """Take in a candidate that an earlier run has finished.

        One whose weights are no longer what was written counts as one without weights. Returns
        whether they are what was written, or were dropped on purpose.
        """
        candidate = self._store.load_candidate(name)
        self.add(candidate)
        intact = self._store.is_intact(candidate)
        if not intact:
            self._dropped.add(name)
        return intact or not self._store.has_weights(name)

    def add(self, candidate: Candidate) -> None:
        """Take in a finished candidate, but for its kept channels: jobs read them in the store."""
        plan = replace(candidate.plan, kept=None)
        self.candidates[candidate.name] = replace(candidate, plan=plan)

    # --- who is best ------------------------------------------------------------------------

    def front(self) -> list[Candidate]:
        """Return the candidates that no other dominates in the objectives."""
        return front_of(
            self._with_weights(), higher_is_better=self.higher_is_better, costs=self._costs
        )

    def parent(self, widths: Mapping[str, int], *, recorded: str | None) -> Candidate | None:
        """Return whose weights a plan of these widths is cut from; None for the dense model's.

        A trial that is tried again has the parent that was `recorded` at first.
        """
        if not self._inherit or recorded == DENSE:
            return None
        there = {c.name: c for c in self._with_weights()}
        if recorded in there:
            return there[recorded]
        front = front_of(there.values(), higher_is_better=self.higher_is_better)
        return choose_parent(front, widths)

    def twins(self, widths: Mapping[str, int]) -> list[Candidate]:
        """Return the candidates that have just these widths, with or without their weights."""
        return [c for c in self.candidates.values() if c.plan.widths == widths]

    def _with_weights(self) -> list[Candidate]:
        return [c for name, c in self.candidates.items() if name not in self._dropped]

    # --- the final stage --------------------------------------------------------------------

    def without_final(self) -> list[Candidate]:
        """Return the front's candidates that have not been through the final stage."""
        return [c for c in self.front() if not self._has_final(c)]

    def lowest_first(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return candidates by their scores, the one with the most to gain first."""
        return sorted(candidates, key=self._worth)

    def better(self, candidate: Candidate) -> Candidate:
        """Return the better of a candidate and its final stage; of equals the final stage."""
        if not self._has_final(candidate):
            return candidate  # it failed, or the budget was used up
        final = self._store.load_candidate(candidate.name + FINAL)
        return final if self._worth(final) >= self._worth(candidate) else candidate

    def _has_final(self, candidate: Candidate) -> bool:
        name = candidate.name + FINAL
        if not self._store.has_candidate(name):
            return False
        return self._store.is_intact(self._store.load_candidate(name))

    def _worth(self, candidate: Candidate) -> float:
        sign = 1.0 if self.higher_is_better else -1.0
        return sign * candidate.score.valid

    # --- weights ----------------------------------------------------------------------------

    def unneeded(self, *, awaited: Iterable[str]) -> set[str]:
        """Return who has weights, but is on no front and not `awaited` as a parent."""
        needed = needed_weights(
            self._with_weights(), higher_is_better=self.higher_is_better, costs=self._costs
        )
        return self.candidates.keys() - self._dropped - needed - set(awaited)

    def drop_weights(self, name: str, *, sparsified: Iterable[str]) -> None:
        """Delete a candidate's weights, its final stage's and those that sparsifiers trained."""
        for each in (name, name + FINAL, *sparsified):
            self._store.drop_weights(each)
        self._dropped.add(name)
