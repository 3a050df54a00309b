"""Lineage: whose weights a new candidate is cut from.

A trial cut from the dense model throws away all that the search has trained. So it is cut from the
nearest finished candidate that has at least its widths everywhere and that nothing of its size
beats; the dense model, which always has, is the first parent.
(The idea for growing networks is LEMONADE's: Elsken et al. 2018.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from autoprune.searching.candidate import Candidate
from autoprune.searching.pareto import front_of

NEAR = 2.0
"""Candidates of up to so many times the parameters of the smallest one are about as near."""

MUCH_LESS = 2.0
"""Who was trained for so many times fewer epochs along its lineage is much less trained."""


class Ancestor(Protocol):
    """What may become a parent, as far as choosing it goes."""

    @property
    def widths(self) -> Mapping[str, int]: ...

    @property
    def params(self) -> int: ...

    @property
    def lineage_epochs(self) -> int: ...


A = TypeVar("A", bound=Ancestor)


def choose_parent(front: Iterable[A], widths: Mapping[str, int]) -> A | None:
    """Return the member of a front to cut `widths` from; None for the dense model.

    The front is that of score and parameters, ascending: candidates off it are beaten by one of at
    most their size, and how fast one runs says nothing of what its weights are worth to a child.
    Of the members that cover the widths and are about as small as the smallest one that does, it
    is the smallest that is not much less trained than another.
    """
    able = [member for member in front if covers(member.widths, widths)]
    near = [member for member in able if member.params <= NEAR * able[0].params]
    most = max((member.lineage_epochs for member in near), default=0)
    return next((m for m in near if m.lineage_epochs * MUCH_LESS >= most), None)


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
