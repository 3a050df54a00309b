"""How busy a Ray cluster of many workers is kept by one driver.

    python benchmarks/scale_ray.py [--workers 32] [--trials 256] [--seconds 10] [--write]

The loop, the sampler, the journal, MLflow and the files' way to the workers and back are the real
ones; trials sleep, so that many workers fit on few cores. `--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import naps
from results_file import wrapped, write_section
from sampling import Network

from autoprune import jobs
from autoprune.driver import Driver
from autoprune.progress import SilentReporter
from autoprune.pruning.files import write_whole
from autoprune.results.store import Store
from autoprune.results.tracking import MlflowTracker
from autoprune.running.cluster import Cluster, Needs, connected
from autoprune.running.executor import Done, Event, JobFunction, Opening, reference
from autoprune.running.ray import RayExecutor
from autoprune.searching.candidate import DENSE, Score
from autoprune.searching.journal import open_journal
from autoprune.searching.optuna_study import open_study, quiet_optuna
from autoprune.searching.sampler import make_sampler
from autoprune.shipping import Shipping

TITLE = "A Ray cluster of 32 workers"
GROUPS = 40
EPOCHS = 10
WEIGHTS = 600_000
"""Bytes of a trial's weights, those of the built-in study's dense network."""
ABOUT = (
    "`python benchmarks/scale_ray.py --write`: one driver, sampler, journal and MLflow on, "
    f"{GROUPS} parameters; trials sleep instead of training, tell of {EPOCHS} epochs and leave "
    f"{WEIGHTS // 1000} KB of weights, which travel. All workers are on this machine's two cores, "
    "beside the driver, and so is what else the machine does. Busy is the share of the workers' "
    "time in which they were in a trial, from when the last worker had begun its first trial to "
    "when the first one found no more to do; idle is what lies between two trials of a worker."
)


class Sleepers:
    """Workers of a Ray cluster that sleep instead of training.

    Attributes
    ----------
    slept
        When each trial began and ended, and where.
    """

    def __init__(self, cluster: Cluster, store: Store, network: Network, seconds: float) -> None:
        self.slept: list[tuple[float, float, str]] = []
        self._network, self._seconds, self._rng = network, seconds, random.Random(0)
        self._asked: dict[str, dict[str, Any]] = {}
        shipping = Shipping(store)
        self._executor = RayExecutor(
            cluster,
            Opening(function=reference(naps.open_folder), spec={"out": str(store.root)}),
            root=store.root,
            log_folder=store.logs,
            freight=lambda _, arguments: shipping(jobs.evaluate, self._asked[arguments["name"]]),
        )

    @property
    def slots(self) -> int:
        return self._executor.slots

    def submit(self, job: str, function: JobFunction, **arguments: Any) -> None:
        assert function is jobs.evaluate
        self._asked[job] = arguments
        params = self._network.cost.params(arguments["plan"]["widths"])
        self._executor.submit(
            job,
            naps.nap,
            name=job,
            plan=arguments["plan"],
            seconds=self._seconds,
            epochs=EPOCHS,
            valid=1 - 1 / (1 + params / 500) + self._rng.gauss(0, 0.01),
            params=params,
            bytes=WEIGHTS,
        )

    def next_event(self) -> Event:
        event = self._executor.next_event()
        if isinstance(event, Done):
            self.slept.append(event.value["slept"])
        return event

    def answer(self, job: str, *, go_on: bool) -> None:
        self._executor.answer(job, go_on=go_on)

    def close(self) -> None:
        self._executor.close()


@dataclass(frozen=True, kw_only=True)
class Busy:
    """What came of it."""

    trials: int
    seconds: float
    """In all."""
    ramp: float
    """Seconds until the last worker had begun its first trial."""
    load: float
    """The machine's load average in the end: how many processes wanted a core."""
    share: float
    idle: float
    """Median of the seconds between two trials of a worker."""
    longest: float
    """The 99th percentile of them."""


def busy(slept: Sequence[tuple[float, float, str]], began: float) -> Busy:
    """Return how busy workers were, by when they began and ended trials."""
    workers: dict[str, list[tuple[float, float]]] = {}
    for start, end, worker in sorted(slept):
        workers.setdefault(worker, []).append((start, end))
    start = max(naps[0][0] for naps in workers.values())
    end = min(naps[-1][1] for naps in workers.values())
    within = sum(max(min(b, end) - max(a, start), 0.0) for a, b, _ in slept)
    gaps = sorted(b[0] - a[1] for naps in workers.values() for a, b in pairwise(naps))
    return Busy(
        trials=len(slept),
        seconds=max(b for _, b, _ in slept) - began,
        ramp=start - began,
        load=os.getloadavg()[1],
        share=within / (len(workers) * (end - start)),
        idle=median(gaps),
        longest=gaps[int(0.99 * len(gaps))],
    )


def measured(workers: int, trials: int, seconds: float, sampler: str) -> Busy:
    """Run a search of trials that sleep on a cluster of one node with so many logical CPUs."""
    from ray.cluster_utils import Cluster as RayCluster

    head = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 500_000_000}
    ray_cluster = RayCluster(initialize_head=True, head_node_args=head)
    network = Network(GROUPS)
    with tempfile.TemporaryDirectory() as folder, connected(ray_cluster.address, Needs()) as found:
        store = Store(folder)
        for file in (store.weights(DENSE), store.scores(DENSE)):
            write_whole(file, bytes(WEIGHTS))
        write_whole(store.groups_file, b"{}")
        tracker = MlflowTracker(store, uri=None, experiment="scale", search="s", name="scale")
        tracker.start({}, {})
        executor = Sleepers(found, store, network, seconds)
        objectives = [("accuracy", True), ("params", False)]
        try:
            with quiet_optuna():
                study = open_study(
                    "scale", storage=open_journal(store.journal), objectives=objectives
                )
                study.sampler = make_sampler(sampler, network.context(trials))
                driver = Driver(
                    space=network.space,
                    cost=network.cost,
                    store=store,
                    executor=executor,
                    tracker=tracker,
                    reporter=SilentReporter(),
                    dense=Score(valid=0.99, params=9_999_999, macs=1, size_bytes=1),
                    metric="accuracy",
                    higher_is_better=True,
                    seed=0,
                    values=lambda score: [score.valid, float(score.params)],
                    early_stop=False,
                )
                began = time.time()
                driver.search(study, budget=trials, deadline=None)
            problems = tracker.finish({}, status="FINISHED")
            assert not problems, problems
        finally:
            executor.close()
    ray_cluster.shutdown()
    return busy(executor.slept, began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sampler", default="pruning")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    # Nodes are to find what they run: this folder and the package.
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    warnings.simplefilter("ignore")
    found = measured(given.workers, given.trials, given.seconds, given.sampler)
    table = (
        "| workers | trials of | trials | load | all busy after | busy | idle, median | 99 % "
        "| in all |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {given.workers} | {given.seconds:g} s | {found.trials} | {found.load:.0f} "
        f"| {found.ramp:.0f} s "
        f"| {found.share:.1%} | {1e3 * found.idle:.0f} ms | {1e3 * found.longest:.0f} ms "
        f"| {found.seconds:.0f} s |"
    )
    print(table)
    if given.write:
        write_section(TITLE, f"{wrapped(ABOUT)}\n\n{table}")


if __name__ == "__main__":
    main()
