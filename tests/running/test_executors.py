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
from contract import ExecutorContract, Make, ProcessContract, alive
from helpers import (
    ROOT,
    count,
    open_context,
    sleep,
)

from autoprune.running.executor import (
    Done,
    Executor,
    Opening,
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
    assert time.monotonic() - started < 5


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
        deadline = time.monotonic() + 3
        while any(alive(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker outlived its driver by 3 s"
            time.sleep(0.05)
