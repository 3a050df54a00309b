"""How a search tells what it is doing. How that looks is the caller's choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial under way."""

    name: str
    params: int
    epoch: int
    epochs: int
    valid: float | None


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """A trial that has just ended."""

    name: str
    state: str
    params: int
    valid: float | None
    parent: str
    criterion: str
    latency: float | None = None
    """Seconds for a batch, where it was measured."""
    cause: str = ""


class FrontPoint(NamedTuple):
    """A candidate on the front so far."""

    name: str
    params: int
    valid: float
    latency: float | None = None
    """Seconds for a batch, where it was measured."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a search stands."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""
    """What `done` and `total` count, where it is not trials or models."""
    metric: str = "score"
    dense_params: int = 0
    dense_valid: float | None = None
    running: Sequence[RunningTrial] = ()
    front: Sequence[FrontPoint] = ()
    """By ascending parameters."""
    ended: EndedTrial | None = None
    eta_seconds: float | None = None
    """Until this stage is over."""


class Reporter(Protocol):
    """Is told where a search stands, a few times a second at most."""

    def update(self, status: Status) -> None: ...

    def note(self, message: str) -> None:
        """Say something that should stay on the screen."""
        ...


class SilentReporter:
    """Says nothing."""

    def update(self, status: Status) -> None: ...

    def note(self, message: str) -> None: ...


class Stage:
    """A stage's length and pace."""

    def __init__(self, name: str, total: int, done_before: int, *, unit: str = "") -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self._before = done_before
        self._started = time.monotonic()

    def eta(self, done: float, *, reserved: int = 0) -> float | None:
        """Return the seconds left at the pace so far; what is `reserved` is not for this stage."""
        worked = done - self._before
        if worked < 0.5:
            return None
        left = max(self.total - reserved - done, 0)
        return (time.monotonic() - self._started) / worked * left
