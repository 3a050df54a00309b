"""Jobs in worker processes on this machine: one thread each, one death ends one job."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
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
from autoprune.running.worker import receive, send

_BOOTSTRAP = (
    "import json, sys; greeting = json.loads(sys.stdin.readline()); "
    "sys.path[:] = greeting['path']; "
    "from autoprune.running.worker import main; main(greeting)"
)
"""Started this way, a worker never runs the caller's own script again, guarded or not."""

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Every plan has other shapes: the default of 1,024 kernels kept would only cost memory.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
}
LOG_TAIL_LINES = 5


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    job: str | None = None


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
    """

    def __init__(
        self,
        opening: Opening,
        *,
        workers: int,
        log_folder: Path,
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        self.slots = workers
        self._opening = opening
        self._logs = log_folder
        self._environments = environments
        self._workers: dict[int, _Worker] = {}
        self._key = secrets.token_bytes(32)
        self._listener = Listener(authkey=self._key)

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        worker = self._idle_worker()
        worker.job = job
        order = {"job": job, "call": reference(function), "arguments": arguments}
        with contextlib.suppress(OSError):  # it died while idle: next_event tells
            send(worker.connection, order)

    def next_event(self) -> Event:
        busy = {w.connection: slot for slot, w in self._workers.items() if w.job is not None}
        assert busy, "there is no job to wait for"
        ready = wait(list(busy))[0]
        assert isinstance(ready, Connection)
        slot = busy[ready]
        worker = self._workers[slot]
        assert worker.job is not None
        job = worker.job
        try:
            message = receive(ready)
        except (EOFError, OSError):
            return self._bury(slot, job)
        if "progress" in message:
            return Progress(job=job, value=message["progress"])
        worker.job = None
        if "done" in message:
            return Done(job=job, value=message["done"])
        return Failed(
            job=job,
            cause=message["failed"],
            detail=message["detail"],
            fixable=message["fixable"],
        )

    def answer(self, job: str, *, go_on: bool) -> None:
        worker = next(w for w in self._workers.values() if w.job == job)
        with contextlib.suppress(OSError):  # it died meanwhile: next_event tells
            send(worker.connection, {"go_on": go_on})

    def close(self) -> None:
        for worker in self._workers.values():
            if worker.job is None:
                with contextlib.suppress(OSError):
                    send(worker.connection, {"job": None})
            else:
                worker.process.kill()
        for worker in self._workers.values():
            worker.connection.close()
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()
        self._listener.close()

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

    def _bury(self, slot: int, job: str) -> Failed:
        worker = self._workers.pop(slot)
        worker.connection.close()
        code = worker.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        tail = worker.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return Failed(
            job=job,
            cause=f"Its worker process ended unexpectedly ({how}); see {worker.log}.",
            detail="\n".join(tail),
            died=True,
        )
