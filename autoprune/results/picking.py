"""Leaving a search with the right model: limits, a choice among what is left, a copy. No torch."""

from __future__ import annotations

import fnmatch
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, unknown
from autoprune.results import units
from autoprune.results.choosing import knee, point_of
from autoprune.results.exported import METRICS, PLAN, check_export
from autoprune.results.result import Model, SearchResult, open_result

CHOICES = ("best", "smallest", "knee")
NEAREST = 2
"""How many models are named when none is within the limits."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model must keep to; None is no limit. Scores are those on validation."""

    max_params: int | None = None
    min_accuracy: float | None = None
    """The worst score; an upper bound where lower is better."""
    max_latency: float | None = None
    """Milliseconds, as `Model.latency_ms` was measured."""
    max_loss: float | None = None
    """Points below the dense model's score, see `choosing.point_of`."""

    def described(self, *, higher_is_better: bool) -> str:
        """Say what is asked of a model, to go after "has"."""
        word = "least" if higher_is_better else "most"
        parts = []
        if self.max_params is not None:
            parts.append(f"at most {self.max_params:,} parameters")
        if self.min_accuracy is not None:
            parts.append(f"a score of at {word} {self.min_accuracy:g}")
        if self.max_latency is not None:
            parts.append(f"a latency of at most {self.max_latency:g} ms")
        if self.max_loss is not None:
            parts.append(f"at most {self.max_loss:g} points of loss")
        return " and ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The model that was picked, and where it is."""

    model: Model
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
        milliseconds at the end of the search (``"2ms"``), points of the score below the dense
        model's.
    choose
        ``best`` takes the best score of those within the limits, ``smallest`` the fewest
        parameters, ``knee`` the one below which a smaller one begins to cost much. By default the
        smallest if there is a limit on the score alone, else the best. ``smallest`` without a
        limit on the score may lose one point.
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
    )
    if choose == "smallest" and limits.min_accuracy is None and limits.max_loss is None:
        limits = replace(limits, max_loss=1.0)
    _check_measured(result, limits)
    within = [m for m in result.front if not any(gap > 0 for gap in _gaps(result, m, limits))]
    if not within:
        raise AutopruneError(_nothing(result, limits))
    choose = choose or _usual(limits)
    model = _CHOOSERS[choose](result, within)
    source = result.out / model.path
    picked = Picked(model=model, folder=source, choice=choose, within=len(within))
    if to is None:
        return picked
    if result.out in (Path(to).resolve(), *Path(to).resolve().parents):
        raise AutopruneError(
            f"`to` must lie outside the search's folder, but {to} is in it. Choose another."
        )
    replaced = copy_export(source, Path(to), overwrite=overwrite)
    return replace(picked, folder=Path(to).resolve(), replaced=replaced)


def _usual(limits: Limits) -> str:
    """Return what is meant where nobody says: the other end of what is limited."""
    scored = limits.min_accuracy is not None or limits.max_loss is not None
    costed = limits.max_params is not None or limits.max_latency is not None
    return "smallest" if scored and not costed else "best"


def _best(result: SearchResult, models: list[Model]) -> Model:
    return max(models, key=lambda m: (_sign(result) * m.valid, -m.params))


def _smallest(result: SearchResult, models: list[Model]) -> Model:
    return min(models, key=lambda m: (m.params, -_sign(result) * m.valid))


def _knee(result: SearchResult, models: list[Model]) -> Model:
    return knee(models, higher_is_better=result.higher_is_better)


_CHOOSERS: Mapping[str, Callable[[SearchResult, list[Model]], Model]] = {
    "best": _best,
    "smallest": _smallest,
    "knee": _knee,
}


def _sign(result: SearchResult) -> float:
    return 1.0 if result.higher_is_better else -1.0


def _check_measured(result: SearchResult, limits: Limits) -> None:
    """Raise `AutopruneError` for a limit on latency where no model has one."""
    if limits.max_latency is not None and all(m.latency_ms is None for m in result.front):
        raise AutopruneError(
            f"`max_latency` must have latencies to compare with, but none is on record in "
            f"{result.out / 'front.json'}. Run `autoprune bench` on the folder first."
        )


# --- nothing within the limits ------------------------------------------------------------------


def _gaps(result: SearchResult, model: Model, limits: Limits) -> list[float]:
    """Return how far a model is beyond each limit, in comparable units; 0 is within."""
    sign, dense = _sign(result), result.dense
    rounding = 1e-9 * max(abs(dense.valid), 1.0)  # scores are counts over a split
    point = point_of(dense.valid, higher_is_better=result.higher_is_better) or 1.0
    gaps = []
    if limits.max_params is not None:
        gaps.append(math.log(max(model.params, 1) / limits.max_params))
    if limits.max_latency is not None:
        latency = math.inf if model.latency_ms is None else model.latency_ms
        gaps.append(math.log(latency / limits.max_latency) if latency else 0.0)
    if limits.min_accuracy is not None:
        gaps.append((sign * (limits.min_accuracy - model.valid) - rounding) / point / 10)
    if limits.max_loss is not None:
        lost = sign * (dense.valid - model.valid) - rounding
        gaps.append((lost / point - limits.max_loss) / 10)
    return [max(gap, 0.0) for gap in gaps]


def _nothing(result: SearchResult, limits: Limits) -> str:
    """Say that no model is within the limits, and what the nearest two are."""
    if not result.front:
        return f"The front of {result.out} is empty: no trial was completed."
    nearest = sorted(result.front, key=lambda m: (sum(_gaps(result, m, limits)), m.params))
    wanted = limits.described(higher_is_better=result.higher_is_better)
    named = " and ".join(_described(m) for m in nearest[:NEAREST])
    return (
        f"No model on the front of {result.study!r} has {wanted}: the nearest "
        f"{'is' if len(nearest) == 1 else 'are'} {named}. Ask for less, or search longer."
    )


def _described(model: Model) -> str:
    latency = "" if model.latency_ms is None else f", {model.latency_ms:.3g} ms"
    return f"{model.name} ({model.params:,} parameters, {model.valid:.4f}{latency})"


# --- the copy -----------------------------------------------------------------------------------


def copy_export(source: Path, to: Path, *, overwrite: bool = False) -> bool:
    """Copy an exported model's folder, whole or not at all; return whether one was replaced.

    Every file is compared with its checksum, before and after.

    Raises
    ------
    AutopruneError
        If the export was altered, or `to` cannot be written or holds something else.
    """
    if not source.is_dir():
        raise AutopruneError(
            f"A front model must have its export, but there is no folder {source}. Run the same "
            f"`autoprune search` again to export it."
        )
    check_export(source)
    there = _check_target(to, overwrite=overwrite)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
            fresh = Path(folder) / "model"
            shutil.copytree(source, fresh)
            check_export(fresh)
            _swap(fresh, to, aside=Path(folder) / "old")
    except OSError as error:
        raise AutopruneError(
            f"`to` must be a folder that can be written, but {to} cannot: "
            f"{error.strerror or error}. Choose another place."
        ) from error
    return there


def _swap(fresh: Path, to: Path, *, aside: Path) -> None:
    """Put `fresh` in the place of `to`, which is there still if that fails."""
    if to.is_dir():
        to.rename(aside)
    try:
        fresh.rename(to)
    except OSError:
        if aside.is_dir():
            aside.rename(to)
        raise


def _check_target(to: Path, *, overwrite: bool) -> bool:
    """Return whether an earlier export is at `to`; raise if that, or anything else, must stay."""
    if to.exists() and not to.is_dir():
        raise AutopruneError(f"`to` must be a new folder, but {to} is a file. Choose another.")
    there = sorted(path.name for path in to.iterdir()) if to.is_dir() else []
    if not there:
        return False
    foreign = [name for name in there if not fnmatch.fnmatchcase(name, "model.*")]
    foreign = [name for name in foreign if name not in (PLAN, METRICS)]
    if foreign or PLAN not in there:
        raise AutopruneError(
            f"`to` must be a new folder or an earlier export, but {to} holds other files: "
            f"{(foreign or there)[0]}. Choose another."
        )
    if not overwrite:
        raise AutopruneError(
            f"`to` must be a new folder, but {to} holds an exported model. Choose another, or add "
            f"--overwrite to replace it."
        )
    return True
