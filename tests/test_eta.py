"""The time left, as it is told: a search that only pretends, against a clock that only pretends."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import write_study
from pretending import completed, driver_on

from autoprune.progress import Pace, SilentReporter, Status
from autoprune.pruning.cost import CostModel
from autoprune.results.store import Store
from autoprune.running.executor import Event, Progress
from autoprune.searching.allocation import Allocator
from autoprune.searching.journal import open_journal
from autoprune.searching.optuna_study import open_study
from autoprune.searching.sampler import SamplerContext, make_sampler
from autoprune.searching.space import SearchSpace
from autoprune.study import load_study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

DENSE_PARAMS = 2426
FINAL_EPOCHS = 4


class Clock:
    """The time that passes in a search."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Workers:
    """Two workers whose epochs take a time that goes with the model's size, and some noise."""

    slots = 2

    def __init__(self, clock: Clock, store: Store, cost: CostModel) -> None:
        self.clock = clock
        self.store = store
        self.cost = cost
        self.jobs: dict[str, Iterator[Event]] = {}
        self.seconds: dict[str, float] = {}
        """Of an epoch, by job."""
        self.waiting: list[tuple[float, str, Event]] = []

    def submit(self, job: str, function: object, **arguments: Any) -> None:
        self.jobs[job] = self._events(arguments)
        self.seconds[job] = 1 + 2 * self._share(arguments)
        self._next(job)

    def _events(self, arguments: dict[str, Any]) -> Iterator[Event]:
        valid = 1 - math.exp(-8 * self._share(arguments))
        for _ in range(arguments["plan"]["finetune"]["epochs"] + 1):
            yield Progress(job=arguments["name"], value={"valid": valid, "loss": 1.0})
        yield completed(arguments, valid, self.cost, self.store)

    def _share(self, arguments: dict[str, Any]) -> float:
        return self.cost.params(arguments["plan"]["widths"]) / DENSE_PARAMS

    def _next(self, job: str) -> None:
        event = next(self.jobs[job])
        noise = 1 + 0.3 * math.sin(1e4 * (len(job) + self.clock.now))
        heapq.heappush(self.waiting, (self.clock.now + noise * self.seconds[job], job, event))

    def next_event(self) -> Event:
        self.clock.now, _, event = heapq.heappop(self.waiting)
        return event

    def answer(self, job: str, *, go_on: bool) -> None:
        self._next(job)

    def close(self) -> None: ...


class Listener(SilentReporter):
    """Keeps what it is told of the time left."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.told: list[tuple[float, float]] = []

    def update(self, status: Status) -> None:
        if status.eta_seconds is not None:
            self.told.append((self.clock.now, status.eta_seconds))


@pytest.mark.parametrize(
    "bounds", [{"budget": 40}, {"budget_epochs": 300}], ids=["trials", "epochs"]
)
def test_from_half_time_on_the_time_left_is_right_within_a_fifth(
    bounds: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("autoprune.progress.time.monotonic", clock.monotonic)
    loaded = load_study(write_study(tmp_path / "study.py", kind="conv", epochs=12))
    grouping, store = loaded.find_groups(loaded.build()), Store(tmp_path / "out")
    store.root.mkdir()
    cost = CostModel(grouping)
    space = SearchSpace(channels=grouping.channels, space=loaded.space, has_dropout=False)
    studies = [
        open_study(
            name,
            storage=open_journal(store.journal),
            objectives=[("accuracy", True), ("params", False)],
        )
        for name in ("tiny", "tiny-final")
    ]
    for study in studies:
        study.sampler = make_sampler(
            "pruning",
            SamplerContext(
                space=space,
                allocator=Allocator(cost, allowed=space.allowed),
                budget=bounds.get("budget", 40),
                budget_epochs=bounds.get("budget_epochs"),
                seed=0,
            ),
        )
    listener = Listener(clock)
    driver = driver_on(
        Workers(clock, store, cost),
        space,
        cost,
        store,
        reporter=listener,
        final_epochs=FINAL_EPOCHS,
        budget_epochs=bounds.get("budget_epochs"),
    )
    driver.resume(*studies)
    began = clock.now
    driver.search(studies[0], budget=bounds.get("budget"), deadline=None)
    driver.finish(studies[1], epochs=FINAL_EPOCHS)
    took = clock.now - began
    late = [(at, left) for at, left in listener.told if at - began >= took / 2]
    assert len(late) > 50
    for at, left in late:
        assert at - began + left == pytest.approx(took, rel=0.2)


def test_a_pace_is_that_of_the_latter_half(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("autoprune.progress.time.monotonic", clock.monotonic)
    pace = Pace()
    assert pace.seconds(10, trained=0) is None
    assert pace.seconds(math.inf, trained=1) is None
    for epoch in range(1, 101):
        clock.now += 10 if epoch <= 20 else 1
        pace.seconds(1, trained=epoch)
    # 280 s, of which the first 20 epochs took 200: at 140 s there were 14, so 86 in 140 s.
    assert pace.seconds(43, trained=100) == pytest.approx(70, rel=0.05)


def test_a_pace_keeps_few_points_of_a_long_search(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("autoprune.progress.time.monotonic", clock.monotonic)
    pace = Pace()
    for epoch in range(20_000):
        clock.now += 1
        pace.seconds(1, trained=epoch)
    assert len(pace._marks) < 300
    assert pace.seconds(50, trained=20_000) == pytest.approx(50, rel=0.02)
