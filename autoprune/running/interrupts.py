"""Ctrl-C and SIGTERM, let through only where nothing is being written.

An interrupt in the middle of a write leaves locks and half-told trials behind. So the signals are
held back, except while the driver waits for its workers, which is nearly always.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from autoprune.running.executor import Event, Executor, JobFunction

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptibleExecutor:
    """An executor whose `next_event` is the one place where an interrupt is raised."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting = False
        self._pending = False

    @property
    def slots(self) -> int:
        return self._executor.slots

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Hold interrupts back until `next_event`, as long as the context lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return
        before = {number: signal.signal(number, self._arrive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._pending:
            raise KeyboardInterrupt

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        self._executor.submit(job, function, **arguments)

    def next_event(self) -> Event:
        self._waiting = True
        try:
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt
            return self._executor.next_event()
        finally:
            self._waiting = False

    def answer(self, job: str, *, go_on: bool) -> None:
        self._executor.answer(job, go_on=go_on)

    def renew(self, make: Callable[[], Executor]) -> None:
        """Drop the jobs under way, and go on with another executor."""
        self._executor.close()
        self._executor = make()

    def close(self) -> None:
        self._executor.close()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt
        self._pending = True
