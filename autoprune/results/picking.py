"""Leaving a search with the right model: limits, a choice among what is left, a copy. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, unknown
from autoprune.results import units
from autoprune.results.choosing import knee
from autoprune.results.handover import copy_export
from autoprune.results.limits import Limits, gaps, nothing_within
from autoprune.results.result import Model, SearchResult, open_result
from autoprune.results.timed import check_measured, latencies_of

CHOICES = ("best", "smallest", "knee")


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The model that was picked, and where it is."""

    model: Model
    latency_ms: float | None
    """Milliseconds of a batch, by the runtime that was asked for."""
    folder: Path
    """The export's folder: the copy, if one was asked for."""
    choice: str
    """Which one it is of those within the limits: the best, the smallest or the knee."""
    within: int
    """How many models of the front are within the limits."""
    replaced: bool = False
    """Whether the copy took the place of an earlier export."""

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.model),
            "latency_ms": self.latency_ms,
            "folder": str(self.folder),
            "choice": self.choice,
            "within": self.within,
            "replaced": self.replaced,
        }


def pick(
    out: str | Path,
    *,
    max_params: int | str | None = None,
    min_accuracy: float | str | None = None,
    max_latency: float | str | None = None,
    max_loss: float | str | None = None,
    choose: str | None = None,
    runtime: str | None = None,
    to: str | Path | None = None,
    overwrite: bool = False,
) -> Picked:
    """Pick a model of a finished search, and copy its export if asked to.

    Parameters
    ----------
    out
        The search's output folder.
    max_params, min_accuracy, max_latency, max_loss
        Limits, all of which it keeps: parameters (``"50k"``), the score on validation (``"98%"``),
        milliseconds for a batch (``"2ms"``), points of the score below the dense
        model's.
    choose
        ``best`` takes the best score of those within the limits, ``smallest`` the fewest
        parameters, ``knee`` the one below which a smaller one begins to cost much. By default the
        smallest if there is a limit on the score alone, else the best. ``smallest`` without a
        limit on the score may lose one point.
    runtime
        Whose latencies count: ``eager``, ``onnx`` or ``compile``, by `autoprune bench` or else as
        measured at the end of the search; by default what the search itself was asked to measure.
    to
        Where to copy the export's folder: a new folder, or an empty one.
    overwrite
        Whether an earlier export at `to` may be replaced.

    Raises
    ------
    AutopruneError
        If there is no finished search, no model within the limits (the nearest two are named),
        the export was altered, or `to` cannot be written or holds something else.

    Examples
    --------
    >>> autoprune.pick("runs/mine", max_params="50k", to="small").model.name  # doctest: +SKIP
    't017'
    """
    if choose is not None and choose not in CHOICES:
        raise unknown("choice", choose, CHOICES)
    result = open_result(out)
    limits = Limits(
        max_params=None if max_params is None else units.count("max_params", max_params),
        min_accuracy=None if min_accuracy is None else units.share("min_accuracy", min_accuracy),
        max_latency=None if max_latency is None else units.milliseconds("max_latency", max_latency),
        max_loss=None if max_loss is None else units.points("max_loss", max_loss),
    ).meant_by(choose)
    latencies = latencies_of(result, runtime)
    if limits.max_latency is not None and result.front:
        check_measured(result, latencies, runtime)
    within = [m for m in result.front if not any(gaps(result, m, limits, latencies))]
    if not within:
        raise AutopruneError(nothing_within(result, limits, latencies))
    choose = choose or _usual(limits)
    model = chosen(result, within, choose)
    source = result.out / model.path
    picked = Picked(
        model=model,
        latency_ms=latencies.get(model.name),
        folder=source,
        choice=choose,
        within=len(within),
    )
    if to is None:
        return picked
    if result.out in (Path(to).resolve(), *Path(to).resolve().parents):
        raise AutopruneError(
            f"`to` must lie outside the search's folder, but {to} is in it. Choose another."
        )
    replaced = copy_export(source, Path(to), overwrite=overwrite)
    return replace(picked, folder=Path(to).resolve(), replaced=replaced)


def chosen(result: SearchResult, models: Sequence[Model], choose: str) -> Model:
    """Return the one of a result's `models` that `choose` names: best, smallest or knee."""
    return _CHOOSERS[choose](result, models)


def _usual(limits: Limits) -> str:
    """Return what is meant where nobody says: the other end of what is limited."""
    scored = limits.min_accuracy is not None or limits.max_loss is not None
    costed = limits.max_params is not None or limits.max_latency is not None
    return "smallest" if scored and not costed else "best"


def _best(result: SearchResult, models: Sequence[Model]) -> Model:
    return max(models, key=lambda m: (_sign(result) * m.valid, -m.params))


def _smallest(result: SearchResult, models: Sequence[Model]) -> Model:
    return min(models, key=lambda m: (m.params, -_sign(result) * m.valid))


def _knee(result: SearchResult, models: Sequence[Model]) -> Model:
    return knee(models, higher_is_better=result.higher_is_better)


_CHOOSERS: Mapping[str, Callable[[SearchResult, Sequence[Model]], Model]] = {
    "best": _best,
    "smallest": _smallest,
    "knee": _knee,
}


def _sign(result: SearchResult) -> float:
    return 1.0 if result.higher_is_better else -1.0
