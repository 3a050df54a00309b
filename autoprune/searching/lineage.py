"""Lineage: whose weights a new candidate is cut from.

A trial cut from the dense model throws away all that the search has trained. So it is cut from the
nearest finished candidate that has at least its widths everywhere and that nothing of its size
beats; the dense model, which always has, is the first parent.
(The idea for growing networks is LEMONADE's: Elsken et al. 2018.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

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
    return Parents(front).choose(widths)


class Parents(Generic[A]):
    """A front, as `choose_parent` looks at it again and again."""

    def __init__(self, front: Iterable[A]) -> None:
        self._members = list(front)
        self._groups = list(self._members[0].widths) if self._members else []
        self._params = np.array([member.params for member in self._members])
        self._epochs = np.array([member.lineage_epochs for member in self._members])
        self._widths = np.array([[m.widths[g] for g in self._groups] for m in self._members])

    def choose(self, widths: Mapping[str, int]) -> A | None:
        """Return the member to cut `widths` from; None for the dense model."""
        if not self._members:
            return None
        wanted = np.array([widths[group] for group in self._groups])
        able = np.flatnonzero((self._widths >= wanted).all(1))
        if not len(able):
            return None
        near = able[self._params[able] <= NEAR * self._params[able[0]]]
        trained = near[self._epochs[near] * MUCH_LESS >= self._epochs[near].max()]
        return self._members[int(trained[0])]


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
