"""What the driver may rely on, whichever executor runs its jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import (
    ROOT,
    count,
    crawl,
    eat,
    end_itself,
    fail,
    fill,
    hang,
    meet,
    open_context,
    open_nothing,
    open_slowly,
    remember,
    sleep,
)

from autoprune.running.executor import (
    Done,
    Event,
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

Make = Callable[..., Executor]


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


@pytest.fixture(params=["inline", "local"])
def make(request: pytest.FixtureRequest, make_local: Make) -> Make:
    if request.param == "local":
        return make_local
    return lambda opening=open_context: InlineExecutor(
        Opening(function=reference(opening), spec={"word": "bone"})
    )


def finish(executor: Executor, *, go_on: Callable[[Any], bool] = lambda value: True) -> list[Event]:
    """Answer a job until it ends; return its events."""
    events = [executor.next_event()]
    while isinstance(events[-1], Progress):
        executor.answer(events[-1].job, go_on=go_on(events[-1].value))
        events.append(executor.next_event())
    return events


def test_progress_comes_in_order_and_then_the_result(make: Make) -> None:
    executor = make()
    executor.submit("a", count, up_to=3)
    assert finish(executor) == [
        *[Progress(job="a", value={"number": n}) for n in (1, 2, 3)],
        Done(job="a", value={"heard": [True, True, True]}),
    ]


def test_a_job_hears_that_it_should_stop(make: Make) -> None:
    executor = make()
    executor.submit("a", count, up_to=9)
    events = finish(executor, go_on=lambda value: value["number"] < 2)
    assert events[-1] == Done(job="a", value={"heard": [True, False]})
    executor.submit("b", count, up_to=1)  # and the next one starts afresh
    assert finish(executor)[-1] == Done(job="b", value={"heard": [True]})


def test_the_context_is_opened_once_and_values_are_what_json_makes_of_them(make: Make) -> None:
    executor = make()
    for name, expected in (("a", ["a"]), ("b", ["a", "b"])):
        executor.submit(name, remember, name=name)
        assert finish(executor)[-1] == Done(job=name, value={"word": "bone", "jobs": expected})


@pytest.mark.parametrize("after", [0, 2])
def test_a_failing_job_says_why_and_whether_it_can_be_mended(make: Make, after: int) -> None:
    executor = make()
    executor.submit("ours", fail, fixable=True, after=after)
    *progress, ours = finish(executor)
    assert len(progress) == after
    assert isinstance(ours, Failed)
    assert (ours.job, ours.cause, ours.fixable) == ("ours", "Give it a bone.", True)
    executor.submit("theirs", fail, fixable=False, after=after)
    theirs = finish(executor)[-1]
    assert isinstance(theirs, Failed)
    assert (theirs.cause, theirs.fixable) == ("ValueError: bad dog", False)
    assert "Traceback" in theirs.detail
    assert "in fail" in theirs.detail
    executor.submit("next", count, up_to=1)
    assert isinstance(finish(executor)[-1], Done)


def test_a_full_disk_is_told_as_what_stops_all(make: Make, tmp_path: Path) -> None:
    executor = make()
    executor.submit("a", fill, folder=str(tmp_path))
    failed = finish(executor)[-1]
    assert isinstance(failed, Failed)
    assert (failed.stops, failed.fixable, failed.died) == (True, True, False)
    assert "room to write" in failed.cause


def test_a_context_that_cannot_be_opened_fails_its_job(make: Make) -> None:
    executor = make(open_nothing)
    executor.submit("a", count, up_to=1)
    (event,) = finish(executor)
    assert isinstance(event, Failed)
    assert (event.cause, event.fixable) == ("There is no bone.", True)


def test_a_reference_finds_its_function_again() -> None:
    assert resolve(reference(count)) is count


# --- worker processes ---------------------------------------------------------------------------


def worker_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any("autoprune.running.worker" in word for word in child.cmdline())
    ]


def test_a_dead_process_ends_its_own_job_alone(make_local: Make, tmp_path: Path) -> None:
    executor = make_local(workers=2)
    executor.submit("steady", sleep, seconds=0.0)
    steady = executor.next_event()
    executor.submit("dying", end_itself)
    dying = executor.next_event()
    assert isinstance(steady, Progress)
    assert isinstance(dying, Progress)
    assert dying.job == "dying"
    assert len({steady.value, dying.value, os.getpid()}) == 3
    executor.answer("dying", go_on=True)
    failed = executor.next_event()
    assert isinstance(failed, Failed)
    assert failed.job == "dying"
    assert "signal 9" in failed.cause
    assert str(tmp_path / "logs") in failed.cause
    assert "famous last words" in failed.detail
    assert not failed.fixable
    executor.answer("steady", go_on=True)
    assert executor.next_event() == Done(job="steady", value={})
    for name in ("next", "after"):
        executor.submit(name, count, up_to=1)
        assert isinstance(finish(executor)[-1], Done)


def test_two_workers_work_at_the_same_time(make_local: Make, tmp_path: Path) -> None:
    executor = make_local(workers=2)
    assert executor.slots == 2
    executor.submit("a", meet, folder=str(tmp_path), me="a", other="b")
    executor.submit("b", meet, folder=str(tmp_path), me="b", other="a")
    done: dict[str, Any] = {}
    while len(done) < 2:
        event = executor.next_event()
        if isinstance(event, Progress):
            executor.answer(event.job, go_on=True)
        else:
            assert isinstance(event, Done)
            done[event.job] = event.value
    assert done == {"a": {"met": True}, "b": {"met": True}}


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


def test_a_job_that_takes_too_long_is_ended_with_its_worker(
    make_local: Make, tmp_path: Path
) -> None:
    executor = make_local(workers=2, limits={reference(hang): 0.5})
    executor.submit("steady", sleep, seconds=1.5)
    executor.submit("stuck", hang, folder=str(tmp_path))
    for _ in range(2):
        event = executor.next_event()
        assert isinstance(event, Progress)
        executor.answer(event.job, go_on=True)
    started = time.monotonic()
    late = executor.next_event()
    assert 0.3 < time.monotonic() - started < 5
    assert isinstance(late, Failed)
    assert (late.job, late.died, late.fixable) == ("stuck", True, False)
    assert "longer than 0.5 s" in late.cause
    child = psutil.Process(int((tmp_path / "child").read_text())) if _lives(tmp_path) else None
    assert child is None or ended(child)
    executor.submit("next", count, up_to=1)  # and its slot is free
    done = {}
    while len(done) < 2:
        event = executor.next_event()
        if isinstance(event, Progress):
            executor.answer(event.job, go_on=True)
        else:
            done[event.job] = event
    assert done == {
        "steady": Done(job="steady", value={}),
        "next": Done(job="next", value={"heard": [True]}),
    }


def _lives(folder: Path) -> bool:
    return psutil.pid_exists(int((folder / "child").read_text()))


def test_a_job_that_tells_of_progress_is_late_all_the_same(make_local: Make) -> None:
    executor = make_local(limits={reference(crawl): 0.6})
    executor.submit("slow", crawl, seconds=0.1)
    events = finish(executor)
    assert 2 <= len(events) < 12
    assert isinstance(events[-1], Failed)
    assert events[-1].died


def test_the_time_to_open_the_context_is_not_the_jobs(make_local: Make) -> None:
    executor = make_local(open_slowly, limits={reference(count): 0.5})
    executor.submit("a", count, up_to=1)
    assert finish(executor)[-1] == Done(job="a", value={"heard": [True]})


@pytest.mark.parametrize("kind", ["python", "torch", "gpu"])
def test_a_job_without_memory_is_cut_short_and_its_process_replaced(make: Make, kind: str) -> None:
    executor = make()
    executor.submit("greedy", eat, kind=kind)
    events = finish(executor)
    assert isinstance(events[0], Progress)
    greedy_pid = events[0].value
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.died
    assert "no memory left" in failed.cause
    executor.submit("next", sleep, seconds=0.0)
    events = finish(executor)
    assert isinstance(events[0], Progress)
    assert events[-1] == Done(job="next", value={})
    replaced = isinstance(executor, LocalExecutor)
    assert (events[0].value != greedy_pid) == replaced


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


def ended(process: psutil.Process, *, within: float = 10.0) -> bool:
    """Wait for the end of a process that was killed: that takes a moment."""
    deadline = time.monotonic() + within
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(process)


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
