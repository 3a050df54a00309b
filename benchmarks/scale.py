"""How long a worker waits for its next plan, by sampler, storage and number of earlier trials.

    python benchmarks/scale.py [--levels 100,1000,2000,5000] [--samplers pruning,tpe,nsga2,random]
        [--storages journal,sqlite,postgresql] [--repeats 12] [--write]
    python benchmarks/scale.py --memory [--trials 1000] [--write]

The driver is the real one, with everything on: the study in its storage, candidates and records on
disk, MLflow delivered in the background. Only the trials pretend: those of two workers sleep for
half a second, and scores are made up. Measured is the time from the end of a trial to the next
one's beginning. Earlier trials are made up, too. PostgreSQL is a server on this machine, which the
benchmark starts.

With `--memory`, a driver runs so many trials in one sitting, and what it holds is told.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import psutil
import sqlalchemy
import torch
from optuna.distributions import distribution_to_json
from optuna.samplers import NSGAIISampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from results_file import wrapped, write_section
from sampling import Network

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgres import PostgresServer, binaries
from pretending import completed, driver_on

from autoprune.driver import Driver
from autoprune.pruning.plan import FineTune, Plan
from autoprune.results.store import Store
from autoprune.results.tracking import MlflowTracker, NullTracker, Tracker
from autoprune.running.executor import Event
from autoprune.searching.candidate import DENSE, Candidate, Score, trial_name
from autoprune.searching.capped import CappedGPSampler, CappedTPESampler
from autoprune.searching.database import FRESH_SECONDS, Database
from autoprune.searching.journal import open_journal
from autoprune.searching.sampler import make_sampler
from autoprune.searching.storage_url import open_database
from autoprune.searching.surrogate import LIMIT as SURROGATE_LIMIT

TITLE = "From a free worker to its next plan"
MEMORY_TITLE = "Memory of the driver"
GROUPS = 40
SLEEP_SECONDS = 0.25
LIMIT_MS = 150
SHOWN = (1, 100, 200, 500, 1000)


class Sleeping:
    """Workers that sleep for a moment; the larger the model, the better its score."""

    slots = 2
    sleep = SLEEP_SECONDS

    def __init__(self, store: Store, network: Network) -> None:
        self.waits: list[float] = []
        self.cpu: list[float] = []
        self._store = store
        self._network = network
        self._jobs: dict[str, dict[str, Any]] = {}
        self._free: tuple[float, float] | None = None

    def submit(self, job: str, function: object, **arguments: Any) -> None:
        if self._free is not None:
            self.waits.append(time.perf_counter() - self._free[0])
            self.cpu.append(time.thread_time() - self._free[1])
        self._free = None
        self._jobs[job] = arguments

    def next_event(self) -> Event:
        time.sleep(self.sleep)
        job = self._jobs.pop(next(iter(self._jobs)))
        params = self._network.space.params(Plan.from_json(job["plan"]))
        valid, _ = self._network.outcome(params)
        event = completed(job, valid, self._network.cost, self._store)
        self._free = time.perf_counter(), time.thread_time()
        return event

    def answer(self, job: str, *, go_on: bool) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    storage: str
    sampler: str
    earlier: int
    wait: float
    """Seconds from a worker's being free to its next plan, the median."""
    least: float
    cpu: float
    """CPU-seconds of the driver's own thread, the median."""


@dataclass
class Past:
    """Made up trials, as a study and a pool know them."""

    network: Network
    trials: list[FrozenTrial] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)

    @classmethod
    def of(cls, network: Network, count: int) -> Past:
        past = cls(network, network.finished(count))
        generation = NSGAIISampler._get_generation_key()
        for number, trial in enumerate(past.trials):
            trial.system_attrs[generation] = number // 10  # its populations are of ten
            trial.user_attrs |= {"parent": DENSE, "epochs": 4, "work": f"{number:016x}", "seed": 1}
            trial.user_attrs |= {"curve": [0.1] * 5, "lineage": [DENSE]}
            widths = network.space.widths(trial.params)
            score, size = trial.values
            past.candidates.append(
                Candidate(
                    name=trial_name(number),
                    trial=number,
                    plan=Plan(
                        widths=widths,
                        criterion="l2",
                        finetune=FineTune(epochs=4, lr=1e-3),
                        kept={name: tuple(range(width)) for name, width in widths.items()},
                    ),
                    score=Score(valid=score, params=int(size), macs=1, size_bytes=1),
                    parent=DENSE,
                    epochs=4,
                    curve=(0.1,) * 5,
                    seed=1,
                )
            )
        return past


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[BaseStorage]:
    """Open a new storage of a kind."""
    if kind == "journal":
        yield open_journal(folder / "study.journal")
        return
    server = None
    if kind == "postgresql":
        programs = binaries()
        assert programs is not None, "needs PostgreSQL's programs"
        server = PostgresServer(programs, durable=True)
        server.start()
    url = f"sqlite:///{folder}/study.db" if server is None else server.create_database("scale")
    storage = open_database(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        if server is not None:
            server.discard()


def tracker_on(store: Store) -> Tracker:
    tracker = MlflowTracker(store, uri=None, experiment="scale", search="scale", name="scale")
    tracker.start({"groups": GROUPS}, {})
    return tracker


def driver_of(
    store: Store, network: Network, tracker: Tracker, past: Sequence[Candidate]
) -> tuple[Driver, Sleeping]:
    executor = Sleeping(store, network)
    driver = driver_on(executor, network.space, network.cost, store, tracker=tracker)
    driver.pool.candidates.update({c.name: c for c in past})
    for name in driver.pool.unneeded(awaited=()):
        driver.pool.drop_weights(name, sparsified=())
    for candidate in driver.pool.front():
        store.weights(candidate.name).parent.mkdir(parents=True, exist_ok=True)
        store.weights(candidate.name).touch()
    return driver, executor


def measured(kind: str, network: Network, past: Past, options: argparse.Namespace) -> list[Row]:
    """Return the rows of one storage: all samplers at each level, on one study that grows."""
    rows = []
    with tempfile.TemporaryDirectory() as name, opened(kind, Path(name)) as storage:
        store = Store(Path(name) / "out")
        store.root.mkdir()
        tracker = tracker_on(store)
        study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
        finished: list[Candidate] = []
        for level in options.levels:
            have = len(study.get_trials(deepcopy=False))
            add_trials(storage, study, past.trials[have:level])
            finished += past.candidates[have:level]
            for sampler in options.samplers:
                earlier = len(study.get_trials(deepcopy=False))
                study.sampler = make_sampler(sampler, network.context(earlier + 100))
                driver, executor = driver_of(store, network, tracker, finished)
                # One more, as the first trials of a sitting find nothing read yet.
                driver.search(study, budget=earlier + options.repeats + 3, deadline=None)
                finished = list(driver.pool.candidates.values())
                waits = executor.waits[1:]
                rows.append(
                    Row(
                        storage=kind,
                        sampler=sampler,
                        earlier=level,
                        wait=median(waits),
                        least=min(waits),
                        cpu=median(executor.cpu[1:]),
                    )
                )
                print(line(rows[-1]), flush=True)
        tracker.finish({}, status="FINISHED")
    return rows


def add_trials(storage: BaseStorage, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Add trials to a study; to a database in a few statements, as Optuna takes 20 ms for each."""
    if not isinstance(storage, Database):
        study.add_trials(trials)
        return
    engine, now, have = storage._engine, datetime.now(), len(study.get_trials(deepcopy=False))
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        first = connection.scalar(sqlalchemy.text("SELECT COALESCE(MAX(trial_id), 0) FROM trials"))
        rows: dict[str, list[dict[str, Any]]] = {}
        for key, trial in enumerate(trials, first + 1):
            about = {"trial_id": key, "number": have + key - first - 1, "study_id": study._study_id}
            about |= {"state": "COMPLETE", "datetime_start": now}
            rows.setdefault("trials", []).append(about | {"datetime_complete": now})
            rows.setdefault("trial_values", []).extend(
                {"trial_id": key, "objective": n, "value": value, "value_type": "FINITE"}
                for n, value in enumerate(trial.values)
            )
            rows.setdefault("trial_params", []).extend(
                {
                    "trial_id": key,
                    "param_name": name,
                    "param_value": trial.distributions[name].to_internal_repr(value),
                    "distribution_json": distribution_to_json(trial.distributions[name]),
                }
                for name, value in trial.params.items()
            )
            for table, known in (("user", trial.user_attrs), ("system", trial.system_attrs)):
                rows.setdefault(f"trial_{table}_attributes", []).extend(
                    {"trial_id": key, "key": name, "value_json": json.dumps(value)}
                    for name, value in known.items()
                )
        for table, found in rows.items():
            connection.execute(tables.tables[table].insert(), found)
        if engine.dialect.name == "postgresql":
            last = "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), MAX(trial_id))"
            connection.execute(sqlalchemy.text(f"{last} FROM trials"))
    time.sleep(1.1 * FRESH_SECONDS)


HEAD = [
    "| storage | sampler | earlier trials | at least | median | CPU |",
    "| --- | --- | --- | --- | --- | --- |",
]


def line(row: Row) -> str:
    return (
        f"| {row.storage} | {row.sampler} | {row.earlier} | {1e3 * row.least:.0f} ms "
        f"| {1e3 * row.wait:.0f} ms | {1e3 * row.cpu:.0f} ms |"
    )


def memory(network: Network, trials: int, kind: str, *, tracked: bool) -> list[float]:
    """Return the megabytes that a driver holds after each of so many trials."""
    held: list[float] = []

    class Weighed(Sleeping):
        sleep = 0.0

        def next_event(self) -> Event:
            event = super().next_event()
            held.append(psutil.Process().memory_info().rss / 1e6)
            return event

    with tempfile.TemporaryDirectory() as name, opened(kind, Path(name)) as storage:
        store = Store(Path(name) / "out")
        store.root.mkdir()
        tracker = tracker_on(store) if tracked else NullTracker()
        study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
        study.sampler = make_sampler("pruning", network.context(trials))
        executor = Weighed(store, network)
        driver = driver_on(executor, network.space, network.cost, store, tracker=tracker)
        driver.search(study, budget=trials, deadline=None)
        tracker.finish({}, status="FINISHED")
    gc.collect()
    return held


def write_scale(rows: Sequence[Row], repeats: int) -> None:
    about = (
        f"`python benchmarks/scale.py --write`: the real driver with everything on (study, "
        f"candidates and records on disk, MLflow in the background), {GROUPS} groups, two workers "
        f"whose trials sleep for {1e3 * SLEEP_SECONDS:.0f} ms; from the end of a trial to the "
        f"beginning of the next: tell, store, record, ask. Earlier trials are made up. Least and "
        f"median of {repeats + 1}; CPU is the median of the driver's own thread. The limit is "
        f"{LIMIT_MS} ms at the 1,000th trial. The machine's {os.cpu_count()} cores had a load of "
        f"{os.getloadavg()[2]:.1f} from others and this: waits are longer by that, the least one "
        f"and the CPU time say what it takes where they are free. TPE and GP look at the front and "
        f"the latest trials, {CappedTPESampler.limit} and {CappedGPSampler.limit} in all; ours "
        f"learns from the latest {SURROGATE_LIMIT}."
    )
    write_section(TITLE, "\n".join([wrapped(about), "", *HEAD, *map(line, rows)]))


def run_memory(network: Network, options: argparse.Namespace) -> None:
    shown = [n for n in SHOWN if n <= options.trials]
    lines = [
        "| storage | " + " | ".join(f"trial {n}" for n in shown) + " | a trial, of the last half |",
        "| --- |" + " --- |" * (len(shown) + 1),
    ]
    for kind in options.storages:
        held = memory(network, options.trials, kind, tracked=True)
        half = len(held) // 2
        slope = (held[-1] - held[half]) / (len(held) - half) * 1e3
        cells = " | ".join(f"{held[n - 1]:.0f}" for n in shown)
        lines.append(f"| {kind} | {cells} | {slope:.0f} kB |")
        print(lines[-1], flush=True)
    if options.write:
        about = (
            f"`python benchmarks/scale.py --memory --write`: megabytes (RSS) of the driver over "
            f"{options.trials} trials of {GROUPS} groups in one sitting, everything on. What stays "
            f"is the trials themselves: parameters, widths, scores and curve of each."
        )
        write_section(MEMORY_TITLE, "\n".join([wrapped(about), "", *lines]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", default="100,1000,2000,5000")
    parser.add_argument("--samplers", default="pruning,tpe,nsga2,random")
    parser.add_argument("--storages", default="journal,sqlite,postgresql")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.levels = [int(level) for level in options.levels.split(",")]
    options.samplers = options.samplers.split(",")
    options.storages = options.storages.split(",")
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    network = Network(GROUPS)
    if options.memory:
        run_memory(network, options)
        return
    past = Past.of(network, max(options.levels))
    print("\n".join(HEAD), flush=True)
    rows: list[Row] = []
    for kind in options.storages:
        rows += measured(kind, network, past, options)
        if options.write:
            write_scale(rows, options.repeats)


if __name__ == "__main__":
    main()
