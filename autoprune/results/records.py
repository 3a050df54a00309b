"""What is recorded of a search: its settings, ended trials, the models on its front, its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from autoprune.redaction import redacted

KIND = "kind"
"""The tag that tells a search's runs apart: search, dense, trial, final."""
State = Literal["complete", "stopped", "failed"]
RunStatus = Literal["FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """A sitting of the search begins."""

    params: Mapping[str, Any]
    tags: Mapping[str, str]
    time: float
    """Seconds since the epoch, here and below."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """An ended trial, as it is logged."""

    key: str
    """Unique within the search: the trial's name."""
    run_name: str
    state: State
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Values by epoch, from epoch 0."""
    tags: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    sparsity: Mapping[str, float] = field(default_factory=dict)
    """Share of each group's channels that went, for the picture."""
    note: str = ""
    """How it came to be, in Markdown."""
    search_metrics: Mapping[str, float] = field(default_factory=dict)
    """What the search has come to with it, for the search's own run."""
    step: int = 0
    """Where `search_metrics` are on their curve."""
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FrontModel:
    """An exported model, as it is handed over to be logged."""

    key: str
    """The trial it belongs to."""
    folder: Path
    metrics: Mapping[str, float]
    module: Callable[[], Any]
    """Builds the torch module."""
    example: Any
    about: str = ""
    """What there is to say of it in a line."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model on the front, as it is logged."""

    key: str
    folder: str
    """The export's, in the output folder."""
    metrics: Mapping[str, float]
    signature: Mapping[str, Any] | None = None
    """What it takes and returns, see `signature.Described`; None if MLflow has no words for it."""
    about: str = ""
    """What there is to say of it in a line."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What the search's own run says of the front."""

    note: str = ""
    """Markdown; a link to ``run:NAME`` leads to that trial's run."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """The trials of the models worth a look, by what they are: smallest, knee, best."""
    dense: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the dense model, which are known at the end only."""
    register: str | None = None
    """The registered model that the front's are to be versions of."""


@dataclass(frozen=True, kw_only=True)
class FrontRecord:
    """The front, which takes the place of every earlier one."""

    models: Sequence[ModelEntry]
    files: Sequence[str]
    """Files for the search's own run, in the output folder."""
    time: float
    overview: Overview = field(default_factory=Overview)


@dataclass(frozen=True, kw_only=True)
class FinishRecord:
    """A sitting of the search ends."""

    metrics: Mapping[str, float]
    status: RunStatus
    time: float


@dataclass(frozen=True, kw_only=True)
class AddedRecord:
    """Something was found out of a search's models after its end."""

    metrics: Mapping[str, Mapping[str, float]]
    """By trial, see `TrialRecord.key`."""
    files: Sequence[str]
    """Files for the search's own run, in the output folder."""
    time: float


Record = StartRecord | TrialRecord | FrontRecord | FinishRecord | AddedRecord
KINDS: dict[str, type[Record]] = {
    "start": StartRecord,
    "trial": TrialRecord,
    "front": FrontRecord,
    "finish": FinishRecord,
    "added": AddedRecord,
}


def kind_of(record: Record) -> str:
    """Return the name of a record's kind, as in `KINDS`."""
    return next(kind for kind, built in KINDS.items() if isinstance(record, built))


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON; URLs in its texts have lost their secrets."""
    value: dict[str, Any] = _redacted(asdict(record))
    return value


def from_json(kind: str, value: Mapping[str, Any]) -> Record:
    """Build a record from `to_json`'s value; raise `TypeError` or `KeyError` for any other."""
    content = dict(value)
    if kind == "front":
        content["models"] = [ModelEntry(**entry) for entry in content["models"]]
        content["overview"] = Overview(**content.get("overview", {}))
    return KINDS[kind](**content)


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item) for item in value]
    return redacted(value) if isinstance(value, str) else value
