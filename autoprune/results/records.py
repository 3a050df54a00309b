"""What is recorded of a search: ended trials, and the models on its front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["complete", "stopped", "failed"]


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
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FrontModel:
    """An exported model, as it is logged."""

    key: str
    """The trial it belongs to."""
    folder: Path
    metrics: Mapping[str, float]
    module: Callable[[], Any]
    """Builds the torch module."""
    example: Any
