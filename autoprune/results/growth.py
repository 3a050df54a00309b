"""How the front of a search grew: the hypervolume after each of its trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoprune.searching.pareto import hypervolume, pareto


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The part of the plane of size and score that hypervolume is a share of."""

    dense_params: int
    floor: float
    """The score, better when higher, from which on a model is worth something."""
    ceiling: float
    higher_is_better: bool = True

    def share(self, points: Sequence[tuple[int, float]]) -> float:
        """Return the share of the plane that models of these (params, score) dominate."""
        sign = 1.0 if self.higher_is_better else -1.0
        return hypervolume(
            [(params, sign * score) for params, score in points],
            dense_params=self.dense_params,
            floor=self.floor,
            ceiling=self.ceiling,
        )


def plane_of(
    *,
    dense_params: int,
    dense_valid: float,
    higher_is_better: bool = True,
    chance: float | None = None,
    scores: Iterable[float] = (),
) -> Plane | None:
    """Return the plane in which a search's hypervolume is taken; None if nothing spans it.

    A share, such as accuracy, counts from 0.5 to 1, as everywhere in autoprune. Any other score
    counts from `chance`, or the worst of `scores` if that is not known, to the best there is.

    >>> plane_of(dense_params=9, dense_valid=0.9).floor
    0.5
    >>> plane = plane_of(dense_params=9, dense_valid=2.0, higher_is_better=False, scores=[7, 1.5])
    >>> plane.floor, plane.ceiling
    (-7.0, -1.5)
    """
    if higher_is_better and 0.5 < dense_valid <= 1:
        return Plane(dense_params=dense_params, floor=0.5, ceiling=1.0)
    sign = 1.0 if higher_is_better else -1.0
    known = [sign * s for s in (dense_valid, *scores) if math.isfinite(s)]
    if not known:
        return None
    floor = float(min(known) if chance is None else sign * chance)
    ceiling = float(max(known))
    if floor >= ceiling:
        return None
    return Plane(
        dense_params=dense_params, floor=floor, ceiling=ceiling, higher_is_better=higher_is_better
    )


def growth(points: Sequence[tuple[int, float]], plane: Plane) -> list[float]:
    """Return the hypervolume after each of the models (params, score), in their order.

    Examples
    --------
    >>> plane = Plane(dense_params=1000, floor=0.5, ceiling=1.0)
    >>> growth([(1000, 1.0), (10, 0.75), (100, 0.7)], plane)
    [0.0, 0.4, 0.4]
    """
    sign = 1.0 if plane.higher_is_better else -1.0
    front: list[tuple[int, float]] = []
    found: list[float] = []
    for params, score in points:
        beaten = any(p <= params and sign * s >= sign * score for p, s in front)
        if math.isfinite(score) and not beaten:
            front = pareto(
                [*front, (params, score)], score=lambda p: sign * p[1], costs=lambda p: p[:1]
            )
            found.append(plane.share(front))
        else:
            found.append(found[-1] if found else 0.0)
    return found
