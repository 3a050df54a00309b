"""Jobs in worker processes on this machine: one thread each, one death ends one job."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

from autoprune.running.executor import (
    Done,
    Event,
    Failed,
    JobFunction,
    Opening,
    Progress,
    reference,
)
from autoprune.running.worker import GoneError, receive, send

_BOOTSTRAP = (
    "import json, sys; greeting = json.loads(sys.stdin.readline()); "
    "sys.path[:] = greeting['path']; "
    "from autoprune.running.worker import main; main(greeting)"
)
"""Started this way, a worker never runs the caller's own script again, guarded or not."""

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
LOG_TAIL_LINES = 5
OPENING_SECONDS = 600.0
"""What a worker may take to open its context, where its first job has a limit."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    job: str | None = None
    limit: float | None = None
    """Seconds that its job may take."""
    deadline: float = math.inf
    """When it has taken them."""
    untried: bool = True
    """Whether it has had no job yet: it may still be opening its context."""

    def begin(self, job: str, limit: float | None) -> None:
        self.job, self.limit, self.untried = job, limit, False
        self._set_deadline(None if limit is None else max(limit, OPENING_SECONDS))

    def begun(self) -> None:
        """The context is open: the job's own time runs from here."""
        self._set_deadline(self.limit)

    def _set_deadline(self, seconds: float | None) -> None:
        self.deadline = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def is_late(self) -> bool:
        return self.job is not None and time.monotonic() > self.deadline

    def kill(self) -> None:
        """End the process and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class LocalExecutor:
    """Runs jobs in up to `workers` processes, started when they are first needed.

    Parameters
    ----------
    opening
        What each worker opens once and gives to its jobs.
    log_folder
        Where ``worker-<slot>.log`` keeps what each worker prints.
    environments
        Environment variables for the workers in turn, as when each gets a GPU of its own.
    limits
        Seconds that a job may take, by the `reference` of its function; others may take any time.
        A worker that is late is killed.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        workers: int,
        log_folder: Path,
        environments: Sequence[Mapping[str, str]] = ({},),
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.slots = workers
        self._opening = opening
        self._logs = log_folder
        self._environments = environments
        self._limits = dict(limits or {})
        self._workers: dict[int, _Worker] = {}
        self._key = secrets.token_bytes(32)
        self._listener = Listener(authkey=self._key)

    def warm_up(self) -> None:
        """Have all workers but the first one open their contexts now, as jobs come one at first."""
        for slot in range(1, self.slots):
            if slot not in self._workers:
                with contextlib.suppress(OSError):  # it died: its first job tells
                    send(self._start(slot).connection, {"open": True})

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        worker = self._idle_worker()
        call = reference(function)
        worker.begin(job, self._limits.get(call))
        order = {"job": job, "call": call, "arguments": arguments}
        with contextlib.suppress(GoneError):  # it died while idle: next_event tells
            send(worker.connection, order)

    def next_event(self) -> Event:
        while True:
            busy = {w.connection: slot for slot, w in self._workers.items() if w.job is not None}
            assert busy, "there is no job to wait for"
            ready = wait(list(busy), timeout=self._patience())
            for connection, slot in busy.items():
                if connection not in ready and self._workers[slot].is_late:
                    return self._bury(slot, late=True)
            if ready:
                event = self._heard(busy[ready[0]])  # type: ignore[index]
                if event is not None:
                    return event

    def _patience(self) -> float | None:
        """Return in how many seconds the first job will be late; None for never."""
        first = min(w.deadline for w in self._workers.values() if w.job is not None)
        return None if first == math.inf else max(first - time.monotonic(), 0.0) + 0.01

    def _heard(self, slot: int) -> Event | None:
        """Return what a worker has said, as an event if it is one."""
        worker = self._workers[slot]
        assert worker.job is not None
        job = worker.job
        try:
            message = receive(worker.connection)
        except GoneError:
            return self._bury(slot)
        if "begun" in message:
            worker.begun()
            return None
        if "progress" in message:
            if worker.is_late:
                return self._bury(slot, late=True)
            return Progress(job=job, value=message["progress"])
        worker.job = None
        if "done" in message:
            return Done(job=job, value=message["done"])
        if message["died"]:
            self._dismiss(slot)
        return Failed(
            job=job,
            cause=message["failed"],
            detail=message["detail"],
            fixable=message["fixable"],
            died=message["died"],
            stops=message["stops"],
        )

    def answer(self, job: str, *, go_on: bool) -> None:
        worker = next(w for w in self._workers.values() if w.job == job)
        with contextlib.suppress(GoneError):  # it died meanwhile: next_event tells
            send(worker.connection, {"go_on": go_on})

    def close(self) -> None:
        for worker in self._workers.values():
            if worker.job is None and not worker.untried:
                with contextlib.suppress(GoneError):
                    send(worker.connection, {"job": None})
            else:
                worker.kill()
        for slot in list(self._workers):
            self._dismiss(slot)
        self._listener.close()

    def _dismiss(self, slot: int) -> None:
        """Wait for the end of a worker that is about to end."""
        worker = self._workers.pop(slot)
        worker.connection.close()
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.process.wait()

    def _idle_worker(self) -> _Worker:
        for slot in range(self.slots):
            worker = self._workers.get(slot)
            if worker is None:
                return self._start(slot)
            if worker.job is None:
                return worker
        raise AssertionError("every worker is busy")

    def _start(self, slot: int) -> _Worker:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"worker-{slot}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ
                | WORKER_ENVIRONMENT
                | dict(self._environments[slot % len(self._environments)]),
                start_new_session=True,  # Ctrl-C is for the driver, which then ends its workers
            )
        greeting = {
            "address": self._listener.address,
            "key": self._key.hex(),
            "driver": os.getpid(),
            "path": sys.path,
            "open": self._opening.function,
            "spec": self._opening.spec,
            "slot": slot,
        }
        assert process.stdin is not None
        process.stdin.write(json.dumps(greeting).encode() + b"\n")
        process.stdin.close()
        connection = self._accept(process)
        worker = _Worker(process=process, connection=connection, log=log)
        self._workers[slot] = worker
        return worker

    def _accept(self, process: subprocess.Popen[bytes]) -> Connection:
        """Wait for the process's call; if it dies first, call in its place so as not to hang."""
        accepted: list[Connection] = []
        waiting = threading.Thread(
            target=lambda: accepted.append(self._listener.accept()), daemon=True
        )
        waiting.start()
        while waiting.is_alive():
            waiting.join(0.05)
            if waiting.is_alive() and process.poll() is not None:
                Client(self._listener.address, authkey=self._key).close()
                waiting.join()
        if process.poll() is None:
            receive(accepted[0])  # its hello
        return accepted[0]

    def _bury(self, slot: int, *, late: bool = False) -> Failed:
        """Say how a worker ended, or end one that is late."""
        worker = self._workers.pop(slot)
        assert worker.job is not None
        if late:
            worker.kill()
        worker.connection.close()
        code = worker.process.wait()
        tail = worker.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        if late:
            cause = f"It took longer than {worker.limit:g} s, so its worker was ended."
        else:
            cause = f"Its worker process ended unexpectedly ({_ended(code)}); see {worker.log}."
        return Failed(job=worker.job, cause=cause, detail="\n".join(tail), died=True)


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    killed = ", as when memory runs out" if -code == signal.SIGKILL else ""
    return f"signal {-code}{killed}"
