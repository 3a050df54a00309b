"""Which models of a front are worth a look: the smallest good one, the knee, the best.

All is decided on validation. The test split is there to report how the chosen ones do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from autoprune.errors import AutopruneError
from autoprune.searching.pareto import pareto

POINT = 0.01
"""A point: of scores that are shares, such as accuracy, and as a share of any other score."""


class Scored(Protocol):
    """What a model must say of itself to be chosen; see `results.result.Model`."""

    @property
    def params(self) -> int: ...

    @property
    def valid(self) -> float: ...


M = TypeVar("M", bound=Scored)


@dataclass(frozen=True, kw_only=True)
class WorthALook(Generic[M]):
    """Three models of a front; they may be the same one."""

    smallest: M | None
    """The smallest one that loses at most a point against the dense model; None if all lose more.
    """
    knee: M
    """Where a smaller model begins to cost much, see `knee`."""
    best: M
    """The best score; of equal ones the smallest."""
    point: float
    """What a point is, in units of the score."""

    @property
    def by_name(self) -> dict[str, M | None]:
        """The three by what they are called."""
        return {"smallest": self.smallest, "knee": self.knee, "best": self.best}


def worth_a_look(
    front: Sequence[M], *, dense: Scored, higher_is_better: bool = True
) -> WorthALook[M]:
    """Return the three models of a front that are worth a look.

    Raises
    ------
    AutopruneError
        If the front is empty.

    Examples
    --------
    >>> from types import SimpleNamespace as Model
    >>> sizes = {100: 0.5, 1_000: 0.96, 10_000: 0.985, 100_000: 0.99}
    >>> front = [Model(params=p, valid=v) for p, v in sizes.items()]
    >>> chosen = worth_a_look(front, dense=Model(params=200_000, valid=0.99))
    >>> chosen.smallest.params, chosen.knee.params, chosen.best.params
    (10000, 1000, 100000)
    """
    if not front:
        raise AutopruneError("The front must hold a model to choose one, but it is empty.")
    sign = 1.0 if higher_is_better else -1.0
    point = point_of(dense.valid, higher_is_better=higher_is_better)
    # Scores are counts over a split: one that is a rounding away from the limit meets it.
    least = sign * dense.valid - point - 1e-9 * max(abs(dense.valid), 1.0)
    return WorthALook(
        smallest=min(
            (m for m in front if sign * m.valid >= least),
            key=lambda m: (m.params, -sign * m.valid),
            default=None,
        ),
        knee=knee(front, higher_is_better=higher_is_better),
        best=max(front, key=lambda m: (sign * m.valid, -m.params)),
        point=point,
    )


def point_of(dense_valid: float, *, higher_is_better: bool = True) -> float:
    """Return what a point of loss is: 0.01 of a share, a hundredth of any other dense score.

    >>> point_of(0.97), point_of(40.0, higher_is_better=False)
    (0.01, 0.4)
    """
    is_share = higher_is_better and 0.0 <= dense_valid <= 1.0
    return POINT if is_share else POINT * abs(dense_valid)


def knee(front: Sequence[M], *, higher_is_better: bool = True) -> M:
    """Return the model at the knee of a front: where a smaller one begins to cost much.

    Score over log parameters, both from 0 to 1 between the front's smallest and best model, the
    knee is the point furthest above the straight line that joins the two (Satopaa et al. 2011,
    "Finding a kneedle in a haystack"). A front of one or two sizes has no knee: it is the best.
    """
    sign = 1.0 if higher_is_better else -1.0
    stairs = pareto(front, score=lambda m: sign * m.valid, costs=lambda m: [m.params])
    small, best = stairs[0], stairs[-1]
    wide = math.log(best.params) - math.log(max(small.params, 1))
    high = sign * (best.valid - small.valid)

    def above(model: M) -> float:
        if wide <= 0 or high <= 0:
            return 0.0
        along = (math.log(max(model.params, 1)) - math.log(max(small.params, 1))) / wide
        return sign * (model.valid - small.valid) / high - along

    return max(reversed(stairs), key=above)
