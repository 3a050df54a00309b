"""What a cluster runs on a node for one slot: a worker process, and the files of its jobs.

The agent itself trains nothing. It starts a worker as on a single machine, so that a death, a hang
or a lack of memory there ends that job alone; it lays out what a job needs before it begins, and
hands over what it leaves.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from autoprune.errors import AutopruneError, RoomError, first_line
from autoprune.running.executor import Event, Failed, Opening, Progress, resolve
from autoprune.running.freight import (
    Digests,
    Freight,
    Luggage,
    Piece,
    TornError,
    files_in,
    packed,
    relocated,
    unpack,
)
from autoprune.running.local import LocalExecutor
from autoprune.version import VERSION

LOG_BYTES = 100_000
"""How much of the end of a worker's log is sent home."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all agents of a search start from."""

    root: str
    """The driver's folder that travels."""
    opening: Opening
    luggage: Luggage = field(default_factory=Luggage)
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A job, and the files that it begins with."""

    job: str
    function: str
    arguments: Mapping[str, Any]
    freight: Freight
    pieces: Mapping[str, tuple[str, Any]]
    """By name, a file's SHA-256 and where the cluster has its `Piece`."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an agent answers."""

    event: Event
    files: Mapping[str, Piece] = field(default_factory=dict)
    log: str = ""
    """Where the worker's log lies on the node, and the end of it, of a job that failed."""
    log_tail: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Where an agent runs."""

    host: str
    node: str
    """Unique to the node for as long as it lives."""
    versions: Mapping[str, str]


class Agent:
    """One slot on a node. Its methods are called from afar, one at a time except `close`."""

    def __init__(self, fetch: Callable[[Any], Piece] | None = None) -> None:
        self._fetch = fetch or _from_cluster
        self._executor: LocalExecutor | None = None
        self._home: Path | None = None
        self._lock: IO[str] | None = None
        self._digests = Digests()
        self._order: Order | None = None
        self._sent: dict[str, str] = {}
        """What the driver has, of the files of the job under way: name and SHA-256."""

    def hello(self) -> Hello:
        here = importlib.import_module("ray").get_runtime_context()
        return Hello(host=socket.gethostname(), node=here.get_node_id(), versions=versions())

    def begin(self, setup: Setup, order: Order) -> Report:
        """Start a job; return its first event."""
        try:
            if self._executor is None:
                self._open(setup)
            self._order = order
            self._lay_out(order)
        except Exception as error:
            return Report(event=_failure(order.job, error))
        assert self._executor is not None
        self._executor.submit(order.job, resolve(order.function), **order.arguments)
        return self._reported()

    def answer(self, go_on: bool) -> Report:
        """Answer the job's progress; return its next event."""
        assert self._executor is not None
        assert self._order is not None
        self._executor.answer(self._order.job, go_on=go_on)
        return self._reported()

    def close(self) -> None:
        """End the worker, busy or not, and leave nothing behind."""
        if self._home is not None:  # first, as nobody waits for long
            shutil.rmtree(self._home, ignore_errors=True)
        if self._executor is not None:
            self._executor.close()
        if self._home is not None:  # a busy worker may have written once more
            shutil.rmtree(self._home, ignore_errors=True)
        if self._lock is not None:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()

    # --- its folder -------------------------------------------------------------------------

    @property
    def _root(self) -> Path:
        assert self._home is not None
        return self._home / "store"

    def _open(self, setup: Setup) -> None:
        self._home, self._lock = _own_folder()
        folders = setup.luggage.laid_out(self._home / "code")
        folders[setup.root] = str(self._root)
        self._executor = LocalExecutor(
            Opening(function=setup.opening.function, spec=relocated(setup.opening.spec, folders)),
            workers=1,
            log_folder=self._home / "logs",
            environments=[setup.environment],
            limits=setup.limits,
        )

    def _lay_out(self, order: Order) -> None:
        """Make the folder hold what the job needs, as the driver has it, and nothing else."""
        for name, file in files_in(self._root, ["."]):
            if name not in order.pieces:
                file.unlink()
        for name, (sha256, where) in order.pieces.items():
            file = self._root / name
            if not file.exists() or self._digests.of(file) != sha256:
                unpack(self._root, name, self._fetch(where))
        self._sent = {name: sha256 for name, (sha256, _) in order.pieces.items()}

    # --- what it reports --------------------------------------------------------------------

    def _reported(self) -> Report:
        assert self._executor is not None
        assert self._order is not None
        assert self._home is not None
        event = self._executor.next_event()
        if isinstance(event, Failed):
            log = self._home / "logs" / "worker-0.log"
            tail = log.read_bytes()[-LOG_BYTES:] if log.exists() else b""
            return Report(event=event, log=str(log), log_tail=tail)
        freight = self._order.freight
        going = isinstance(event, Progress)
        return Report(event=event, files=self._new(freight.keeps if going else freight.leaves))

    def _new(self, paths: tuple[str, ...]) -> dict[str, Piece]:
        """Return the files that the driver has not got as they are now."""
        found: dict[str, Piece] = {}
        for name, file in files_in(self._root, paths):
            if self._digests.of(file) != self._sent.get(name):
                found[name] = packed(file)
                self._sent[name] = found[name].sha256
        return found


def versions() -> dict[str, str]:
    """Return the versions that must be the same on all machines of a search."""
    found = {"autoprune": VERSION, "python": ".".join(map(str, sys.version_info[:2]))}
    try:
        found["torch"] = version("torch").split("+")[0]  # the rest says which GPUs it is built for
    except PackageNotFoundError:
        found["torch"] = "none"
    return found


def _from_cluster(where: Any) -> Piece:
    piece: Piece = importlib.import_module("ray").get(where)
    return piece


def _failure(job: str, error: Exception) -> Failed:
    """Describe what went wrong before the job could begin."""
    ours = isinstance(error, AutopruneError)
    cause = str(error) if ours else f"Its node could not begin it: {first_line(error)}."
    return Failed(
        job=job,
        cause=f"{cause} (on {socket.gethostname()})",
        fixable=ours,
        died=not isinstance(error, RoomError),
        stops=isinstance(error, RoomError) and not isinstance(error, TornError),
    )


def _own_folder() -> tuple[Path, IO[str]]:
    """Return a new folder, and the lock that is held while it is in use.

    Those of agents that were killed are deleted. Nobody else on the node can write to ours.
    """
    shelf = Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}"
    shelf.mkdir(mode=0o700, exist_ok=True)
    about = shelf.lstat()
    if not shelf.is_dir() or shelf.is_symlink() or about.st_uid != os.getuid():
        raise AutopruneError(f"{shelf} must be a folder of our own, but is another user's.")
    for old in shelf.glob("*.lock"):
        with old.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # in use
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink(missing_ok=True)
    name = uuid.uuid4().hex[:12]
    lock = (shelf / f"{name}.lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    home = shelf / name
    (home / "store").mkdir(parents=True)
    return home, lock
