"""Two searches side by side: by hypervolume, and at equal sizes. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.pruning.files import read_json
from autoprune.results.result import Model, SearchResult, open_result
from autoprune.searching.pareto import hypervolume

SIZES = 6
"""At how many sizes two searches are compared."""
FLOOR, DECADES = 0.5, 2.5
"""The plane of scores that are shares and of fronts that reach no further: as in MLflow."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The plane of which hypervolumes are a share, the same for both searches.

    Scores are taken so that higher is better.
    """

    dense_params: int
    """The larger of the two dense models."""
    floor: float
    ceiling: float
    decades: float
    """Of parameters below the dense model."""

    def share(self, points: Sequence[tuple[int, float]]) -> float:
        """Return the share that (params, score) points dominate."""
        return hypervolume(
            points,
            dense_params=self.dense_params,
            floor=self.floor,
            ceiling=self.ceiling,
            decades=self.decades,
        )


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two searches."""

    out: str
    study: str
    models: int
    trials: int
    """That ended as complete or stopped."""
    epochs: int
    hypervolume: float
    """Share of the reference's plane, on validation."""
    hypervolume_test: float | None
    """The same on test; None for a task that has no test data."""


@dataclass(frozen=True, kw_only=True)
class AtSize:
    """The best models of both searches that are at most so large; None if there is none."""

    params: int
    scores: tuple[float | None, float | None]
    names: tuple[str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two searches of one task, side by side."""

    metric: str
    higher_is_better: bool
    reference: Reference
    sides: tuple[Side, Side]
    sizes: tuple[AtSize, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(one: str | Path, other: str | Path) -> Comparison:
    """Set two finished searches side by side.

    Raises
    ------
    AutopruneError
        If one is not finished, or they are of different tasks or objectives.

    Examples
    --------
    >>> both = compare("runs/one", "runs/other")  # doctest: +SKIP
    >>> [side.hypervolume for side in both.sides]  # doctest: +SKIP
    [0.71, 0.69]
    """
    results = open_result(one), open_result(other)
    for result in results:
        if not result.front:
            raise AutopruneError(
                f"A search must have a front to compare, but {result.out} has not."
            )
    _check_alike(*results)
    reference = _reference(results)
    return Comparison(
        metric=results[0].metric,
        higher_is_better=results[0].higher_is_better,
        reference=reference,
        sides=(_side(results[0], reference), _side(results[1], reference)),
        sizes=tuple(_at_size(params, results) for params in _sizes(results)),
    )


# --- are they alike -----------------------------------------------------------------------------


def _check_alike(one: SearchResult, other: SearchResult) -> None:
    facts = [_facts(result) for result in (one, other)]
    for name in facts[0]:
        a, b = facts[0][name], facts[1][name]
        if a is not None and b is not None and a != b:
            raise AutopruneError(
                f"Two searches must be of one task and have the same objectives to be compared, "
                f"but their {name} differ: {a} in {one.out}, {b} in {other.out}."
            )


def _facts(result: SearchResult) -> dict[str, Any]:
    """Return what must be the same in both, by what it is called; None is not known."""
    front = read_json(result.out / "front.json")
    identity = result.out / "search.json"
    data = (read_json(identity).get("data") or {}) if identity.exists() else {}
    asked = front.get("objectives")
    return {
        "metrics": result.metric,
        "directions": "higher is better" if result.higher_is_better else "lower is better",
        "objectives": asked and ",".join(asked),
        "validation data": data.get("valid"),
        "test data": data.get("test"),
    }


# --- the plane ----------------------------------------------------------------------------------


def _reference(results: tuple[SearchResult, SearchResult]) -> Reference:
    models = [m for result in results for m in result.front]
    dense_params = max(result.dense.params for result in results)
    scores = [s for r in results for m in (r.dense, *r.front) for s in _scores(r, m)]
    reach = math.log10(dense_params / max(min(m.params for m in models), 1))
    least, most = min(scores), max(scores)
    shares = results[0].higher_is_better and least >= 0 and most <= 1
    if shares and max(r.dense.valid for r in results) > FLOOR:
        return Reference(dense_params=dense_params, floor=FLOOR, ceiling=1.0, decades=DECADES)
    return Reference(
        dense_params=dense_params,
        floor=least,
        ceiling=most if most > least else least + 1.0,
        decades=max(math.ceil(2 * reach) / 2, 0.5),
    )


def _scores(result: SearchResult, model: Model) -> list[float]:
    sign = 1.0 if result.higher_is_better else -1.0
    return [sign * s for s in (model.valid, model.test) if s is not None]


def _side(result: SearchResult, reference: Reference) -> Side:
    sign = 1.0 if result.higher_is_better else -1.0
    tested = [(m.params, sign * m.test) for m in result.front if m.test is not None]
    return Side(
        out=str(result.out),
        study=result.study,
        models=len(result.front),
        trials=result.trials.get("complete", 0) + result.trials.get("stopped", 0),
        epochs=result.epochs,
        hypervolume=reference.share([(m.params, sign * m.valid) for m in result.front]),
        hypervolume_test=reference.share(tested) if len(tested) == len(result.front) else None,
    )


# --- equal sizes --------------------------------------------------------------------------------


def _sizes(results: tuple[SearchResult, SearchResult]) -> list[int]:
    """Return sizes in equal ratios, from where both have a model up to the largest one's."""
    least = max(min(m.params for m in result.front) for result in results)
    most = max(m.params for result in results for m in result.front)
    steps = [least * (most / least) ** (i / (SIZES - 1)) for i in range(SIZES)]
    return sorted({math.ceil(size - 1e-6) for size in steps})


def _at_size(params: int, results: tuple[SearchResult, SearchResult]) -> AtSize:
    found = [best_within(result, params) for result in results]
    return AtSize(
        params=params,
        scores=tuple(m and m.valid for m in found),  # type: ignore[arg-type]
        names=tuple(m and m.name for m in found),  # type: ignore[arg-type]
    )


def best_within(result: SearchResult, params: int) -> Model | None:
    """Return the best model of a front that has at most so many parameters."""
    sign = 1.0 if result.higher_is_better else -1.0
    within = [m for m in result.front if m.params <= params]
    return max(within, key=lambda m: (sign * m.valid, -m.params), default=None)


def verdict(both: Comparison) -> str:
    """Say in one line which search is ahead, and where."""
    one, other = both.sides
    gap = one.hypervolume - other.hypervolume
    ahead = "Both cover the same" if gap == 0 else f"{(one if gap > 0 else other).out} covers more"
    wins = _wins(both)
    return (
        f"{ahead}: {one.hypervolume:.4f} and {other.hypervolume:.4f} of the plane. Of "
        f"{len(both.sizes)} sizes the first is ahead at {wins['first']}, the second at "
        f"{wins['second']}."
    )


def _wins(both: Comparison) -> Mapping[str, int]:
    sign = 1.0 if both.higher_is_better else -1.0
    pairs = [at.scores for at in both.sizes]
    gaps = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
    return {"first": sum(g > 0 for g in gaps), "second": sum(g < 0 for g in gaps)}
