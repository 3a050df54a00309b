"""Jobs on a Ray cluster: an agent for each slot, wherever Ray finds room for it.

The driver talks with agents by calls that return a report each: what its worker told, and the files
that go with it. An agent that does not answer any more is a worker that died.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoprune.errors import RoomError
from autoprune.running.agent import Agent, Hello, Order, Report, Setup, versions
from autoprune.running.cluster import Cluster, Needs, loss_of
from autoprune.running.executor import (
    Event,
    Failed,
    JobFunction,
    Opening,
    Progress,
    reference,
)
from autoprune.running.freight import (
    Freight,
    Luggage,
    Sender,
    TornError,
    files_in,
    unpack,
    within,
)

TICK_SECONDS = 0.5
"""How often it is looked whether a job that waits for its agent should go elsewhere."""
ROOM_SECONDS = 60.0
"""How long there may be no node that offers what a trial needs."""
CLOSE_SECONDS = 8.0


def no_freight(function: JobFunction, arguments: Mapping[str, Any]) -> Freight:
    """Say that a job has nothing to do with files."""
    return Freight()


@dataclass
class _Slot:
    """An agent, which may be waiting for room, and the job that it has or waits with."""

    number: int
    agent: Any = None
    """None while it is to be placed anew."""
    call: Any = None
    """The answer that is waited for; None if there is nothing to wait for."""
    hello: Hello | None = None
    """Where it runs, once it has said so."""
    order: Order | None = None
    begun: bool = False
    since: float = field(default_factory=time.monotonic)
    """When an agent was first wanted here."""


class RayExecutor:
    """Runs jobs on the nodes of a Ray cluster.

    Parameters
    ----------
    cluster
        Where; its `needs` are what one job takes.
    opening
        What each worker opens once and gives to its jobs.
    root
        The folder whose files travel; on a node, paths in it are in the agent's own folder.
    workers
        The most jobs at once; None for as many as fit.
    freight
        Which files go with a job, by its function and arguments.
    luggage
        Files that every worker needs.
    environment, limits
        As `LocalExecutor` takes them.
    log_folder
        Where the ends of failed workers' logs are put.
    """

    def __init__(
        self,
        cluster: Cluster,
        opening: Opening,
        *,
        root: Path,
        log_folder: Path,
        workers: int | None = None,
        freight: Callable[[JobFunction, Mapping[str, Any]], Freight] = no_freight,
        luggage: Luggage | None = None,
        environment: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self._cluster = cluster
        self._ray = cluster.ray
        self._root = root
        self._logs = log_folder
        self._most = workers
        self._freight = freight
        self._setup = self._ray.put(
            Setup(
                root=str(root),
                opening=opening,
                luggage=luggage or Luggage(),
                environment=_visible(cluster.needs) | dict(environment or {}),
                limits=dict(limits or {}),
            )
        )
        self._make_agent = self._ray.remote(Agent).options(
            num_cpus=cluster.needs.cpus,
            num_gpus=cluster.needs.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # it is closed while a job is under way
            scheduling_strategy="SPREAD",
        )
        self._slots: dict[int, _Slot] = {}
        self._sender = Sender(self._ray.put)
        self._no_room_since: float | None = None
        self._next_tick = 0.0

    @property
    def slots(self) -> int:
        """How many jobs can run at once on the nodes that there are now."""
        room = self._cluster.capacity()
        return max(room if self._most is None else min(room, self._most), 1)

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        arguments = json.loads(json.dumps(arguments))
        freight = self._freight(function, arguments)
        order = Order(
            job=job,
            function=reference(function),
            arguments=arguments,
            freight=freight,
            pieces={
                name: self._sender.piece(file) for name, file in files_in(self._root, freight.needs)
            },
        )
        idle = self._idle_slot()
        if idle is None:
            idle = self._new_slot()
        idle.order = order
        if idle.hello is not None:
            self._begin(idle)

    def next_event(self) -> Event:
        assert any(s.order is not None for s in self._slots.values()), "there is no job"
        while True:
            if time.monotonic() > self._next_tick:
                event = self._place()
                self._next_tick = time.monotonic() + TICK_SECONDS
                if event is not None:
                    return event
            calls = {slot.call: slot for slot in self._slots.values() if slot.call is not None}
            if not calls:
                time.sleep(TICK_SECONDS)
                continue
            ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=TICK_SECONDS)
            event = self._heard(calls[ready[0]]) if ready else None
            if event is not None:
                return event

    def answer(self, job: str, *, go_on: bool) -> None:
        slot = next(s for s in self._slots.values() if s.order is not None and s.order.job == job)
        slot.call = slot.agent.answer.remote(go_on)

    def close(self) -> None:
        ends = [
            slot.agent.close.remote() for slot in self._slots.values() if slot.hello is not None
        ]
        with contextlib.suppress(Exception):  # whoever does not answer is killed all the same
            self._ray.wait(ends, num_returns=len(ends), timeout=CLOSE_SECONDS)
        for slot in list(self._slots.values()):
            self._discard(slot)

    # --- agents -----------------------------------------------------------------------------

    def _idle_slot(self) -> _Slot | None:
        return next((s for s in self._slots.values() if s.order is None), None)

    def _new_slot(self) -> _Slot:
        number = next(n for n in range(len(self._slots) + 1) if n not in self._slots)
        slot = self._slots[number] = _Slot(number=number)
        self._appoint(slot)
        return slot

    def _appoint(self, slot: _Slot) -> None:
        slot.agent = self._make_agent.remote()
        slot.call = slot.agent.hello.remote()

    def _begin(self, slot: _Slot) -> None:
        slot.begun = True
        slot.call = slot.agent.begin.remote(self._setup, slot.order)

    def _discard(self, slot: _Slot) -> None:
        """Give up an agent, and its place on the node."""
        self._slots.pop(slot.number, None)
        self._dismiss(slot)

    def _dismiss(self, slot: _Slot) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(slot.agent, no_restart=True)
        slot.agent = slot.call = None

    def _place(self) -> Event | None:
        """Find room for jobs that wait for it: with agents that are idle, or with new ones.

        Returns how a job fails if there is no room any more.
        """
        for waiting in [s for s in self._slots.values() if s.order is not None and not s.begun]:
            idle = next((s for s in self._slots.values() if s.order is None and s.hello), None)
            if idle is not None:
                # Where a node has left there are more agents than fit.
                idle.order = waiting.order
                self._discard(waiting)
                self._begin(idle)
            elif self._no_room():
                assert waiting.order is not None
                self._discard(waiting)
                return Failed(
                    job=waiting.order.job,
                    cause=f"No node of the cluster offers what a trial needs any more, "
                    f"{self._cluster.needs}. Add nodes, and the same command goes on.",
                    fixable=True,
                    stops=True,
                )
            elif waiting.agent is None:
                self._appoint(waiting)
        return None

    def _no_room(self) -> bool:
        if self._cluster.capacity():
            self._no_room_since = None
            return False
        if self._no_room_since is None:
            self._no_room_since = time.monotonic()
        return time.monotonic() - self._no_room_since > ROOM_SECONDS

    # --- what they say ----------------------------------------------------------------------

    def _heard(self, slot: _Slot) -> Event | None:
        """Return what an agent has answered, as an event if it is one."""
        call, slot.call = slot.call, None
        try:
            said = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return self._lost(slot, error)
        if isinstance(said, Hello):
            return self._welcome(slot, said)
        assert isinstance(said, Report)
        assert slot.order is not None
        event = said.event
        try:
            self._take(said, slot.order.freight)
        except (TornError, RoomError) as error:
            self._discard(slot)  # what its worker does now is of no use
            return Failed(
                job=slot.order.job,
                cause=str(error),
                fixable=True,
                died=isinstance(error, TornError),
                stops=isinstance(error, RoomError),
            )
        if not isinstance(event, Progress):
            slot.order, slot.begun = None, False
        if isinstance(event, Failed) and said.log:
            log = self._logs / f"worker-{slot.number}.log"
            self._logs.mkdir(parents=True, exist_ok=True)
            log.write_bytes(said.log_tail)
            event = replace(event, cause=event.cause.replace(said.log, str(log)))
        return event

    def _welcome(self, slot: _Slot, hello: Hello) -> Event | None:
        ours = versions()
        other = next((name for name in ours if hello.versions.get(name) != ours[name]), None)
        if other is not None:
            self._discard(slot)
            return self._mismatch(slot, hello, other)
        slot.hello = hello
        if slot.order is not None:
            self._begin(slot)
        return None

    def _mismatch(self, slot: _Slot, hello: Hello, other: str) -> Event | None:
        if slot.order is None:
            return None
        return Failed(
            job=slot.order.job,
            cause=f"Every node must have {other} {versions()[other]} as this machine has, but "
            f"{hello.host} has {hello.versions.get(other)}. Install the same there.",
            fixable=True,
            stops=True,
        )

    def _lost(self, slot: _Slot, error: Exception) -> Event | None:
        """Say that an agent is gone, or its node."""
        self._cluster.capacity(fresh=True)
        absent = "No module named 'autoprune'" in str(error)
        patient = time.monotonic() - slot.since < ROOM_SECONDS
        if slot.hello is None and slot.order is not None and patient and not absent:
            self._dismiss(slot)  # it was to be on a node that nobody knew to be dead
            return None
        self._discard(slot)
        if slot.order is None:
            return None
        if absent:
            cause = (
                f"Every node must have autoprune {versions()['autoprune']} installed, but one has "
                f"none: run `pip install 'autoprune[ray]'` there."
            )
        else:
            where = slot.hello.host if slot.hello else "a node of the cluster"
            cause = f"Its worker on {where} was lost ({loss_of(error)})."
        return Failed(
            job=slot.order.job,
            cause=cause,
            detail=str(error),
            fixable=absent,
            stops=absent,
            died=not absent,
            place=slot.hello.node if slot.hello else "",
        )

    # --- files ------------------------------------------------------------------------------

    def _take(self, report: Report, freight: Freight) -> None:
        """Write the files that a job has left; none but those that it may."""
        for name, piece in report.files.items():
            if not within(name, (*freight.leaves, *freight.keeps)):
                raise TornError(f"A job must leave only its own files, but one left {name!r}.")
            unpack(self._root, name, piece)


def _visible(needs: Needs) -> dict[str, str]:
    """Return the variables that give a worker what its trials were said to take."""
    threads = str(max(1, int(needs.cpus)))
    # An agent with GPUs has been shown its own by Ray.
    hidden = {} if needs.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **hidden}
