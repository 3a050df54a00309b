"""Lineage: whose weights a new candidate is cut from.

A trial cut from the dense model throws away all that the search has trained. So it is cut from the
nearest finished candidate that has at least its widths everywhere and that nothing of its size
beats; the dense model, which always has, is the first parent.
(The idea for growing networks is LEMONADE's: Elsken et al. 2018.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autoprune.searching.candidate import Candidate
from autoprune.searching.pareto import front_of


def choose_parent(
    candidates: Iterable[Candidate], widths: Mapping[str, int], *, higher_is_better: bool
) -> Candidate | None:
    """Return the smallest candidate on the front that covers `widths`; None for the dense model.

    Candidates off the front are beaten by one of at most their size, so that a better start
    exists at almost any size. How fast a candidate runs says nothing of what its weights are worth
    to a child, so that the front is that of score and parameters, whatever the objectives are.
    """
    front = front_of(candidates, higher_is_better=higher_is_better)
    return next((c for c in front if covers(c.plan.widths, widths)), None)


def covers(parent: Mapping[str, int], child: Mapping[str, int]) -> bool:
    """Return whether `parent` has at least `child`'s width in every group."""
    return all(parent[name] >= width for name, width in child.items())


def lineage_of(name: str, candidates: Mapping[str, Candidate]) -> list[str]:
    """Return `name` and its ancestors, nearest first; the dense model is the last.

    >>> lineage_of("dense", {})
    ['dense']
    """
    chain = [name]
    while chain[-1] in candidates:
        chain.append(candidates[chain[-1]].parent)
    return chain


def needed_weights(
    candidates: Iterable[Candidate], *, higher_is_better: bool, costs: Sequence[str]
) -> set[str]:
    """Return the names of the candidates that may become parents or be exported.

    These are on the front of score and parameters, or on that over all costs. Who has left both
    comes back to neither: better ones stay.
    """
    everyone = list(candidates)
    parents = front_of(everyone, higher_is_better=higher_is_better)
    exported = front_of(everyone, higher_is_better=higher_is_better, costs=costs)
    return {candidate.name for candidate in (*parents, *exported)}
