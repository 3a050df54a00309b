"""How a search tells what it is doing. How that looks is the caller's choice."""

from __future__ import annotations

import math
import time
from collections import deque
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
    doing: str = ""
    """What it does, where that is not fine-tuning."""


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
    epochs: int = 0
    """How many it trained."""


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
    higher_is_better: bool = True
    dense_params: int = 0
    dense_valid: float | None = None
    running: Sequence[RunningTrial] = ()
    front: Sequence[FrontPoint] = ()
    """By ascending parameters."""
    ended: EndedTrial | None = None
    eta_seconds: float | None = None
    """Until the last model is trained."""


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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What bounds a search: so many trials, or epochs."""

    name: str
    total: int
    done: int = 0
    unit: str = ""
    """What they are, if not trials."""


MARKS = 200
"""About how many points in time a pace is taken from."""


class Pace:
    """How fast epochs are trained, all workers together.

    It is taken from the latter half of the time: the epochs of a search get quicker as its models
    get smaller, and what was trained last tells best what comes next.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._marks = deque([(self._began, 0.0)])

    def seconds(self, left: float, *, trained: float) -> float | None:
        """Return the time that so many epochs will take; None before there is a pace.

        `trained` is how many have been trained since the beginning.
        """
        now = time.monotonic()
        elapsed = now - self._began
        if now - self._marks[-1][0] >= elapsed / MARKS:
            self._marks.append((now, trained))
        while len(self._marks) > 1 and self._marks[1][0] <= now - elapsed / 2:
            self._marks.popleft()
        before, done = self._marks[0]
        worked = trained - done
        if worked <= 0 or math.isinf(left):
            return None
        return (now - before) / worked * left
