"""What the driver may rely on, whichever executor runs its jobs: the contract, as tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import (
    BROKEN,
    count,
    crawl,
    eat,
    end_itself,
    fail,
    fill,
    hang,
    meet,
    open_nothing,
    open_slowly,
    read,
    remember,
    sleep,
)

from autoprune.running.executor import Done, Event, Executor, Failed, Progress, reference

Make = Callable[..., Executor]
"""Makes an executor, by default one of a worker on ``helpers.open_context``."""


def finish(executor: Executor, *, go_on: Callable[[Any], bool] = lambda value: True) -> list[Event]:
    """Answer a job until it ends; return its events."""
    events = [executor.next_event()]
    while isinstance(events[-1], Progress):
        executor.answer(events[-1].job, go_on=go_on(events[-1].value))
        events.append(executor.next_event())
    return events


class ExecutorContract:
    """Tests of any executor: subclasses bring the fixture `make`."""

    has_processes = True
    """Whether jobs run in processes that can be replaced."""

    def test_progress_comes_in_order_and_then_the_result(self, make: Make) -> None:
        executor = make()
        executor.submit("a", count, up_to=3)
        assert finish(executor) == [
            *[Progress(job="a", value={"number": n}) for n in (1, 2, 3)],
            Done(job="a", value={"heard": [True, True, True]}),
        ]

    def test_a_job_hears_that_it_should_stop(self, make: Make) -> None:
        executor = make()
        executor.submit("a", count, up_to=9)
        events = finish(executor, go_on=lambda value: value["number"] < 2)
        assert events[-1] == Done(job="a", value={"heard": [True, False]})
        executor.submit("b", count, up_to=1)  # and the next one starts afresh
        assert finish(executor)[-1] == Done(job="b", value={"heard": [True]})

    def test_the_context_is_opened_once_and_values_come_as_json(self, make: Make) -> None:
        executor = make()
        for name, expected in (("a", ["a"]), ("b", ["a", "b"])):
            executor.submit(name, remember, name=name)
            assert finish(executor)[-1] == Done(job=name, value={"word": "bone", "jobs": expected})

    @pytest.mark.parametrize("after", [0, 2])
    def test_a_failing_job_says_why_and_if_it_can_be_mended(self, make: Make, after: int) -> None:
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

    @pytest.mark.parametrize("kind", BROKEN)
    def test_data_that_break_off_are_no_lost_driver(self, make: Make, kind: str) -> None:
        executor = make()
        executor.submit("a", read, kind=kind)
        begun, failed = finish(executor)
        assert isinstance(begun, Progress)
        assert isinstance(failed, Failed)
        assert failed.cause == f"{BROKEN[kind].__name__}: sample 7"
        assert "in read" in failed.detail
        assert (failed.died, failed.stops) == (False, False)
        executor.submit("next", sleep, seconds=0.0)
        again, done = finish(executor)
        assert isinstance(again, Progress)
        assert again.value == begun.value  # the same process goes on
        assert done == Done(job="next", value={})

    def test_a_full_disk_is_told_as_what_stops_all(self, make: Make, tmp_path: Path) -> None:
        executor = make()
        executor.submit("a", fill, folder=str(tmp_path))
        failed = finish(executor)[-1]
        assert isinstance(failed, Failed)
        assert (failed.stops, failed.fixable, failed.died) == (True, True, False)
        assert "room to write" in failed.cause

    def test_a_context_that_cannot_be_opened_fails_its_job(self, make: Make) -> None:
        executor = make(open_nothing)
        executor.submit("a", count, up_to=1)
        (event,) = finish(executor)
        assert isinstance(event, Failed)
        assert (event.cause, event.fixable) == ("There is no bone.", True)

    @pytest.mark.parametrize("kind", ["python", "torch", "gpu"])
    def test_a_job_without_memory_is_cut_short(self, make: Make, kind: str) -> None:
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
        assert (events[0].value != greedy_pid) == self.has_processes


class ProcessContract(ExecutorContract):
    """Tests of an executor whose jobs run in processes; its `make` takes `workers` and `limits`."""

    def test_a_dead_process_ends_its_own_job_alone(self, make: Make, tmp_path: Path) -> None:
        executor = make(workers=2)
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

    def test_two_workers_work_at_the_same_time(self, make: Make, tmp_path: Path) -> None:
        executor = make(workers=2)
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

    def test_a_job_that_takes_too_long_is_ended_with_its_worker(
        self, make: Make, tmp_path: Path
    ) -> None:
        executor = make(workers=2, limits={reference(hang): 3.0})
        executor.submit("steady", sleep, seconds=0.0)
        assert isinstance(executor.next_event(), Progress)
        executor.submit("stuck", hang, folder=str(tmp_path))
        assert executor.next_event() == Progress(job="stuck", value={})
        executor.answer("stuck", go_on=True)
        late = executor.next_event()
        assert isinstance(late, Failed)
        assert (late.job, late.died, late.fixable) == ("stuck", True, False)
        assert "longer than 3 s" in late.cause
        child = int((tmp_path / "child").read_text())
        assert not psutil.pid_exists(child) or ended(psutil.Process(child))
        executor.submit("next", count, up_to=1)  # and its slot is free
        assert finish(executor)[-1] == Done(job="next", value={"heard": [True]})
        executor.answer("steady", go_on=True)
        assert executor.next_event() == Done(job="steady", value={})

    def test_a_job_that_tells_of_progress_is_late_all_the_same(self, make: Make) -> None:
        executor = make(limits={reference(crawl): 2.0})
        executor.submit("slow", crawl, seconds=0.1)
        events = finish(executor)
        assert 2 <= len(events) < 30
        assert isinstance(events[-1], Failed)
        assert events[-1].died

    def test_the_time_to_open_the_context_is_not_the_jobs(self, make: Make) -> None:
        executor = make(open_slowly, limits={reference(count): 2.0})
        executor.submit("a", count, up_to=1)
        assert finish(executor)[-1] == Done(job="a", value={"heard": [True]})


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
