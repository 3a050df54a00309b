"""The front: who is not dominated, and how much of the plane it covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from autoprune.searching.candidate import Candidate
from autoprune.searching.objectives import DEFAULT_COSTS, cost_of

T = TypeVar("T")


def pareto(
    items: Iterable[T], *, score: Callable[[T], float], costs: Callable[[T], Sequence[float]]
) -> list[T]:
    """Return the items that no other dominates, by ascending costs.

    `score` is better when higher, each of `costs` when lower. Of equals the first one stays.

    >>> points = [(5, 0.9), (3, 0.8), (4, 0.7), (9, 0.9)]
    >>> pareto(points, score=lambda i: i[1], costs=lambda i: i[:1])
    [(3, 0.8), (5, 0.9)]
    """
    front: list[tuple[Sequence[float], float, T]] = []
    # In this order, nobody is dominated by one that comes later.
    for item in sorted(items, key=lambda i: (*costs(i), -score(i))):
        cost, worth = costs(item), score(item)
        if len(cost) == 1:  # who is dominated at all is by the last one
            if not front or worth > front[-1][1]:
                front.append((cost, worth, item))
        elif not any(
            value >= worth and all(c <= d for c, d in zip(other, cost, strict=True))
            for other, value, _ in front
        ):
            front.append((cost, worth, item))
    return [item for _, _, item in front]


def front_of(
    candidates: Iterable[Candidate], *, higher_is_better: bool, costs: Sequence[str] = DEFAULT_COSTS
) -> list[Candidate]:
    """Return the candidates on the validation front over `costs`, by ascending parameters."""
    sign = 1.0 if higher_is_better else -1.0
    front = pareto(
        candidates,
        score=lambda c: sign * c.score.valid,
        costs=lambda c: [cost_of(c.score, name) for name in costs],
    )
    return sorted(front, key=lambda c: c.score.params)


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
    front = pareto(points, score=lambda p: p[1], costs=lambda p: p[:1])
    area, reached = 0.0, floor
    for params, score in front:
        # Each point adds the strip above the ones before it, as wide as it is small.
        saved = min(max(-math.log10(params / dense_params), 0.0), decades)
        height = min(score, ceiling) - reached
        if height > 0:
            area += saved * height
            reached = min(score, ceiling)
    return area / (decades * (ceiling - floor))
