"""Whether a search's model is as good as last week's: for a gate in continuous integration."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from autoprune.errors import AutopruneError, unknown
from autoprune.pruning.files import read_json, write_json
from autoprune.results import units
from autoprune.results.choosing import point_of
from autoprune.results.picking import CHOICES, chosen
from autoprune.results.result import Model, SearchResult, checked, open_result

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is compared of a model."""

    name: str
    params: int
    valid: float
    """Its score on validation."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a check remembers of a search."""

    study: str
    metric: str
    higher_is_better: bool
    dense: float
    """The dense model's score on validation, which says what a point is."""
    choice: str
    """``knee``, ``best`` or ``smallest``."""
    model: Compared

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Read what `to_json` gave; raise KeyError or TypeError for anything else."""
        model = Compared(**_told(value["model"], Compared))
        return cls(**_told({**value, "model": model}, cls))


def _told(value: Mapping[str, Any], kind: type[Compared | Record]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return checked({name: value[name] for name in hints}, hints)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How a search's model compares with the one before."""

    now: Record
    before: Record
    loss: float
    """Points by which the score is worse; negative if it is better."""
    growth: float
    """Percent by which it has more parameters; negative if it has fewer."""
    problems: tuple[str, ...]
    """What is worse than was allowed, one line each."""
    sets_standard: bool
    """Whether later models may be compared with this one: it is no worse, not even as allowed."""

    @property
    def passed(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "loss": self.loss,
            "growth": self.growth,
            "problems": list(self.problems),
            "now": self.now.to_json(),
            "before": self.before.to_json(),
        }


def check(
    out: str | Path,
    *,
    against: str | Path,
    choose: str = "knee",
    max_loss: float | str = 0.0,
    max_growth: float | str | None = None,
) -> Checked:
    """Compare the model that would be picked of a search with the one picked before.

    Parameters
    ----------
    out
        The search's output folder.
    against
        Another search's output folder, or a file that `remember` wrote.
    choose
        ``knee``, ``best`` or ``smallest``; see `autoprune.pick`. A file holds one of them.
    max_loss
        Points by which the score on validation may be worse.
    max_growth
        Percent by which the model may have more parameters; None does not limit them.

    Raises
    ------
    AutopruneError
        If one is not finished or not readable, or they differ in metric or choice.

    Examples
    --------
    >>> check("runs/new", against="knee.json", max_loss=1).passed  # doctest: +SKIP
    True
    """
    if choose not in CHOICES:
        raise unknown("choice", choose, CHOICES)
    allowed = units.points("max_loss", max_loss)
    most = None if max_growth is None else units.points("max_growth", max_growth)
    now, before = record_of(out, choose), _before(Path(against), choose)
    for name in ("metric", "higher_is_better", "choice"):
        ours, theirs = getattr(now, name), getattr(before, name)
        if ours != theirs:
            raise AutopruneError(
                f"Both must have the same {name} to be compared, but it is {ours} in {out} and "
                f"{theirs} in {against}."
            )
    sign = 1.0 if now.higher_is_better else -1.0
    point = point_of(before.dense, higher_is_better=before.higher_is_better) or 1.0
    loss = sign * (before.model.valid - now.model.valid) / point + 0.0  # never -0.0
    growth = 100.0 * (now.model.params / max(before.model.params, 1) - 1)
    problems = []
    if loss > allowed + 1e-9:
        problems.append(
            f"{now.metric} of the {choose} is {now.model.valid:.4f}, and was "
            f"{before.model.valid:.4f}: {loss:.2f} points worse, of {allowed:g} allowed."
        )
    if most is not None and growth > most + 1e-9:
        problems.append(
            f"The {choose} has {now.model.params:,} parameters, and had "
            f"{before.model.params:,}: {growth:.1f} % more, of {most:g} allowed."
        )
    return Checked(
        now=now,
        before=before,
        loss=loss,
        growth=growth,
        problems=tuple(problems),
        # What is allowed each time would add up. Where size has no limit, it is not compared.
        sets_standard=loss <= 0 and (most is None or growth <= 0),
    )


def remember(out: str | Path, file: str | Path, *, choose: str = "knee") -> Record:
    """Write down the model that would be picked of a search, for a later check; return that."""
    record = record_of(out, choose)
    keep(record, file)
    return record


def keep(record: Record, file: str | Path) -> None:
    """Write a record to a file that a later check reads.

    Raises
    ------
    AutopruneError
        If the file cannot be written.
    """
    try:
        write_json(Path(file), record.to_json())
    except OSError as error:
        raise AutopruneError(
            f"`--against` must be a file that can be written with --update, but {file} cannot: "
            f"{error.strerror}. Give another one."
        ) from error


def record_of(out: str | Path, choose: str) -> Record:
    """Return what a check remembers of a finished search."""
    result = open_result(out)
    model = _model_of(result, choose)
    return Record(
        study=result.study,
        metric=result.metric,
        higher_is_better=result.higher_is_better,
        dense=result.dense.valid,
        choice=choose,
        model=Compared(name=model.name, params=model.params, valid=model.valid),
    )


def _model_of(result: SearchResult, choose: str) -> Model:
    if not result.front:
        raise AutopruneError(f"A search must have a front to check, but {result.out} has not.")
    return chosen(result, result.front, choose)


def _before(path: Path, choose: str) -> Record:
    if path.is_dir():
        return record_of(path, choose)
    if not path.is_file():
        raise AutopruneError(
            f"`--against` must be a search's folder or a file of an earlier check, but there is no "
            f"{path}. `--update` writes it."
        )
    value = read_json(path)
    if isinstance(value, dict) and value.get("format") == FORMAT:
        with contextlib.suppress(KeyError, TypeError):
            return Record.from_json(value)
    raise AutopruneError(
        f"{path} must be what `autoprune check --update` wrote, of format {FORMAT}, but is not. "
        f"Write it anew."
    )
