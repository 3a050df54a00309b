"""What an executor is: jobs go in, events come out, the driver answers each progress event.

A job is a generator function at the top level of an importable module. It gets a context (opened
once per worker) and JSON-able arguments, yields JSON-able progress, and is sent back whether to
go on; what it returns is its result.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

JobFunction = Callable[..., Generator[Any, bool, Any]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job has got somewhere and waits to hear whether to go on."""

    job: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job has ended with a result."""

    job: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A job has ended without one."""

    job: str
    cause: str
    """One line for people."""
    detail: str = ""
    """The traceback, for the log."""
    fixable: bool = False
    """Whether the cause is one of our own errors, whose message names the fix."""
    died: bool = False
    """Whether it was cut short: its worker process ended, was ended as the job took too long, or
    had no memory left. That need not be the job's fault."""
    stops: bool = False
    """Whether every other job would fare the same, as when the disk is full."""
    place: str = ""
    """The machine that was lost, if that is what ended it: all that ran there shares the loss."""


Event = Progress | Done | Failed


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a worker opens the context that its jobs share: an importable function and its input."""

    function: str
    """As ``module:name``."""
    spec: Any
    """JSON-able argument."""

    def __call__(self) -> Any:
        return resolve(self.function)(self.spec)


class Executor(Protocol):
    """Runs jobs somewhere. Only the driver talks to it."""

    @property
    def slots(self) -> int:
        """How many jobs it can run at once."""
        ...

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        """Start a job. At most `slots` may be under way."""
        ...

    def next_event(self) -> Event:
        """Wait for the next event of any job."""
        ...

    def answer(self, job: str, *, go_on: bool) -> None:
        """Answer a job's `Progress`. A job told to stop still ends with `Done`."""
        ...

    def close(self) -> None:
        """End all workers; jobs under way are dropped."""
        ...


def reference(function: Callable[..., Any]) -> str:
    """Return the ``module:name`` of a top-level function."""
    return f"{function.__module__}:{function.__qualname__}"


def resolve(name: str) -> Callable[..., Any]:
    """Import what `reference` named."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found
