"""What the driver may rely on, whichever executor runs its jobs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from contract import ExecutorContract, Make, ProcessContract, alive, ended
from helpers import (
    ROOT,
    count,
    open_context,
    open_marking,
    open_nothing,
    sleep,
)

from autoprune.running.executor import (
    Done,
    Executor,
    Failed,
    Opening,
    Progress,
    reference,
    resolve,
)
from autoprune.running.inline import InlineExecutor
from autoprune.running.local import LocalExecutor

# --- the contract -------------------------------------------------------------------------------


@pytest.fixture
def make_local(tmp_path: Path) -> Iterator[Make]:
    made: list[Executor] = []

    def make(
        opening: Callable[..., object] = open_context, workers: int = 1, **more: Any
    ) -> Executor:
        executor = LocalExecutor(
            Opening(function=reference(opening), spec={"word": "bone"}),
            workers=workers,
            log_folder=tmp_path / "logs",
            **more,
        )
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.close()


class TestInline(ExecutorContract):
    has_processes = False

    @pytest.fixture
    def make(self) -> Make:
        return lambda opening=open_context: InlineExecutor(
            Opening(function=reference(opening), spec={"word": "bone"})
        )


class TestLocal(ProcessContract):
    @pytest.fixture
    def make(self, make_local: Make) -> Make:
        return make_local


def test_a_reference_finds_its_function_again() -> None:
    assert resolve(reference(count)) is count


# --- worker processes ---------------------------------------------------------------------------


def worker_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any("autoprune.running.worker" in word for word in child.cmdline())
    ]


def test_close_leaves_no_process_idle_or_busy(make_local: Make) -> None:
    executor = make_local(workers=2)
    executor.submit("busy", sleep, seconds=60.0)
    executor.next_event()
    executor.answer("busy", go_on=True)
    executor.submit("short", sleep, seconds=0.0)
    executor.next_event()
    executor.answer("short", go_on=True)
    assert executor.next_event() == Done(job="short", value={})
    assert len(worker_processes()) == 2
    started = time.monotonic()
    executor.close()
    assert worker_processes() == []
    assert time.monotonic() - started < 45  # it would sleep for a minute


def test_workers_that_are_warmed_up_open_their_context_once_and_before_their_first_job(
    tmp_path: Path,
) -> None:
    opening = Opening(function=reference(open_marking), spec={"word": str(tmp_path)})
    executor = LocalExecutor(opening, workers=2, log_folder=tmp_path / "logs")
    try:
        executor.warm_up()
        (warm,) = worker_processes()
        mark = tmp_path / str(warm.pid)
        deadline = time.monotonic() + 60
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert mark.exists()
        executor.submit("first", sleep, seconds=60.0)  # on the other one, which comes first
        begun = executor.next_event()
        assert isinstance(begun, Progress)
        assert begun.value != warm.pid
        executor.submit("second", sleep, seconds=0.0)
        assert executor.next_event() == Progress(job="second", value=warm.pid)
        assert mark.read_text() == "x"
    finally:
        executor.close()
    assert worker_processes() == []


def test_a_worker_that_cannot_be_warmed_up_says_so_at_its_first_job(make_local: Make) -> None:
    executor = make_local(open_nothing, workers=2)
    executor.warm_up()
    for job in ("first", "second"):
        executor.submit(job, sleep, seconds=0.0)
    said = [executor.next_event() for _ in range(2)]
    assert [e.cause for e in said if isinstance(e, Failed)] == ["There is no bone."] * 2


DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import helpers as jobs
from autoprune.running.executor import Opening
from autoprune.running.local import LocalExecutor
executor = LocalExecutor(
    Opening(function="helpers:open_context", spec={{"word": "bone"}}),
    workers=2,
    log_folder=Path({logs!r}),
)
executor.submit("busy", jobs.sleep, seconds=60.0)
busy = executor.next_event().value
executor.answer("busy", go_on=True)
executor.submit("idle", jobs.sleep, seconds=0.0)
idle = executor.next_event().value
executor.answer("idle", go_on=True)
executor.next_event()
print(busy, idle, flush=True)
sys.stdin.read()
"""


def test_workers_do_not_outlive_a_killed_driver(tmp_path: Path) -> None:
    script = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"), logs=str(tmp_path / "logs"))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(worker) for worker in workers)
        driver.kill()
        driver.wait()
        assert all(ended(worker) for worker in workers)
