"""Jobs in this very process, one at a time: for debugging, notebooks and tests."""

from __future__ import annotations

import json
import traceback
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from autoprune.errors import AutopruneError, RoomError, first_line
from autoprune.running.executor import Done, Event, Failed, JobFunction, Opening, Progress


class InlineExecutor:
    """Runs each job in the caller's process when its next event is asked for.

    Parameters
    ----------
    around
        Entered whenever a job runs: it keeps what belongs to the caller out of the job's way.
    """

    slots = 1

    def __init__(
        self, opening: Opening, *, around: AbstractContextManager[None] | None = None
    ) -> None:
        self._opening = opening
        self._around = around or nullcontext()
        self._context: Any = None
        self._job: str | None = None
        self._running: Generator[Any, bool, Any] | None = None
        self._arguments: tuple[JobFunction, dict[str, Any]] | None = None
        self._go_on = True

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        assert self._job is None, "one job at a time"
        self._job, self._running, self._arguments = job, None, (function, arguments)

    def next_event(self) -> Event:
        assert self._job is not None, "there is no job to wait for"
        with self._around:
            return self._advance(self._job)

    def _advance(self, job: str) -> Event:
        """Run the job up to its next event."""
        try:
            if self._running is None:
                assert self._arguments is not None
                function, arguments = self._arguments
                if self._context is None:
                    self._context = self._opening()
                self._running = function(self._context, **arguments)
                return Progress(job=job, value=_as_sent(next(self._running)))
            return Progress(job=job, value=_as_sent(self._running.send(self._go_on)))
        except StopIteration as stop:
            self._job = None
            return Done(job=job, value=_as_sent(stop.value))
        except Exception as error:
            self._job = None
            return failure(job, error)

    def answer(self, job: str, *, go_on: bool) -> None:
        self._go_on = go_on

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
        self._job = None


def _as_sent(value: Any) -> Any:
    """Return what a driver gets to see of `value` when it comes from another process."""
    return json.loads(json.dumps(value))


def failure(job: str, error: Exception) -> Failed:
    """Describe an exception as the event that ends its job."""
    fixable = isinstance(error, AutopruneError)
    starved = is_out_of_memory(error)
    cause = str(error) if fixable else first_line(error)
    if starved:
        cause = f"There was no memory left ({cause}). Use fewer workers or smaller batches."
    return Failed(
        job=job,
        cause=cause,
        detail=traceback.format_exc(),
        fixable=fixable,
        died=starved,
        stops=isinstance(error, RoomError),
    )


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch on the CPU or torch on a GPU had no memory left.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    True
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
