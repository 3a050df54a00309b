"""Delivery: from the spool to MLflow, by a thread of its own, as often as it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from autoprune.errors import first_line
from autoprune.results.records import Record
from autoprune.results.spool import Spool

BACKOFF_SECONDS = (1.0, 60.0)
"""Time between attempts at a server that is away: the first, doubled up to the last."""
QUIET_SECONDS = 30.0
"""At the end, how long nothing may get through before the rest is left in the spool."""
LAST_ATTEMPTS = 10
"""At the end, how often a server that is away is tried, `BACKOFF_SECONDS[0]` apart."""
CLOSE_SECONDS = 600.0
"""At the end, how long delivery may take in all."""


class Server(Protocol):
    """What records are delivered to; see `MlflowRuns`."""

    def deliver(self, record: Record, *, over: bool) -> list[str]: ...

    def is_alive(self) -> bool: ...


Connect = Callable[[Callable[[], None]], Server]
"""Opens the server. It is given what to call whenever the server has answered."""


class _GivenUpError(Exception):
    """Nobody waits for this delivery any more."""


class Delivery:
    """Delivers what is in a spool, and what still comes into it, until it is closed.

    Records go in their order. When the server is away, the same record is tried again, after a
    pause. When the server is there but refuses a record, the others go on, and it is tried again
    at the end.
    """

    def __init__(self, spool: Spool, connect: Connect) -> None:
        self._spool = spool
        self._connect = connect
        self._server: Server | None = None
        self._refused: dict[int, str] = {}
        self._away = ""
        self._notes: list[str] = []
        self._work = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._last_answer = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new in the spool."""
        self._work.set()

    def close(self, tell: Callable[[int], None] = lambda left: None) -> list[str]:
        """Deliver what is left, within a bounded time; return what could not be, and why.

        `tell` is told from time to time how many records are left.
        """
        began = self._last_answer = time.monotonic()
        self._closing.set()
        self._work.set()
        while self._thread.is_alive():
            self._thread.join(0.2)
            tell(len(self._spool.pending()))
            now = time.monotonic()
            if now - self._last_answer > QUIET_SECONDS or now - began > CLOSE_SECONDS:
                break
        self._given_up.set()
        return self._problems()

    def _problems(self) -> list[str]:
        if self._thread.is_alive() and not self._away:
            self._away = f"no answer for {QUIET_SECONDS:.0f} s"
        waiting = set(self._spool.pending())
        refused = {text for number, text in self._refused.items() if number in waiting}
        away = waiting - self._refused.keys()
        faults = [f"MLflow could not be reached: {self._away}"] if away and self._away else []
        return [*self._notes, *faults, *sorted(f"MLflow: {text}" for text in refused)]

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        pause, longest = BACKOFF_SECONDS
        last_time, attempts = False, 0
        while True:
            try:
                there = self._deliver_all()
            except _GivenUpError:
                return
            if there and self._closing.is_set():
                if not self._refused.keys() >= set(self._spool.pending()):
                    continue  # more has come since
                if last_time or not self._spool.pending():
                    return
                last_time = True
                self._refused.clear()
            elif there:
                pause = BACKOFF_SECONDS[0]
                self._work.wait()
                self._work.clear()
            elif self._closing.is_set():
                attempts += 1
                if attempts == LAST_ATTEMPTS or self._given_up.wait(BACKOFF_SECONDS[0]):
                    return
            else:
                self._closing.wait(pause)
                pause = min(2 * pause, longest)

    def _deliver_all(self) -> bool:
        """Deliver what can be delivered now; return whether the server was there."""
        for number in self._spool.pending():
            if number in self._refused:
                continue
            try:
                self._deliver(number)
            except _GivenUpError:
                raise
            except Exception as error:
                server, self._server = self._server, None  # what is there is looked up anew
                if server is None or not server.is_alive():
                    self._away = first_line(error)
                    return False
                self._refused[number] = first_line(error)
        return True

    def _deliver(self, number: int) -> None:
        if self._server is None:
            self._server = self._connect(self._answered)
        record = self._spool.read(number)
        if record is None:
            return  # another front has taken its place
        for note in self._server.deliver(record, over=self._spool.is_over(number)):
            if note not in self._notes:
                self._notes.append(note)
        self._spool.mark(number)

    def _answered(self) -> None:
        self._last_answer = time.monotonic()
        if self._given_up.is_set():
            raise _GivenUpError
