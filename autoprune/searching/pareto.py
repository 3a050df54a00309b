"""The front: who is not dominated, and how much of the plane it covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from autoprune.searching.candidate import Candidate

T = TypeVar("T")


def pareto(items: Iterable[T], *, score: Callable[[T], float], size: Callable[[T], int]) -> list[T]:
    """Return the items that no other dominates, by ascending size.

    `score` is better when higher, `size` when lower. Of equals the first one stays.

    >>> pareto([(5, 0.9), (3, 0.8), (4, 0.7), (9, 0.9)], score=lambda i: i[1], size=lambda i: i[0])
    [(3, 0.8), (5, 0.9)]
    """
    front: list[T] = []
    for item in sorted(items, key=lambda i: (size(i), -score(i))):
        if not front or score(item) > score(front[-1]):
            front.append(item)
    return front


def front_of(candidates: Iterable[Candidate], *, higher_is_better: bool) -> list[Candidate]:
    """Return the candidates on the validation front, by ascending parameters."""
    sign = 1.0 if higher_is_better else -1.0
    return pareto(candidates, score=lambda c: sign * c.score.valid, size=lambda c: c.score.params)


def hypervolume(
    points: Sequence[tuple[int, float]],
    *,
    dense_params: int,
    floor: float,
    ceiling: float = 1.0,
    decades: float = 2.5,
) -> float:
    """Return the share of the plane that (params, score) points dominate, in [0, 1].

    The plane spans log10 of the parameters over `decades` below the dense model, and the score
    from `floor` to `ceiling`. Scores are better when higher.

    >>> hypervolume([(1000, 1.0)], dense_params=1000, floor=0.5)
    0.0
    >>> hypervolume([(10, 0.75)], dense_params=1000, floor=0.5)
    0.4
    """
    front = pareto(points, score=lambda p: p[1], size=lambda p: p[0])
    area, reached = 0.0, floor
    for params, score in front:
        # Each point adds the strip above the ones before it, as wide as it is small.
        saved = min(max(-math.log10(params / dense_params), 0.0), decades)
        height = min(score, ceiling) - reached
        if height > 0:
            area += saved * height
            reached = min(score, ceiling)
    return area / (decades * (ceiling - floor))
