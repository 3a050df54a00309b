"""Searches on a real Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from contract import Make, ProcessContract
from helpers import (
    ROOT,
    copy,
    count,
    open_context,
    open_folder,
    start_cli,
    write_study,
)
from optuna.trial import FrozenTrial, TrialState

import autoprune
from autoprune.errors import AutopruneError
from autoprune.results.store import Store
from autoprune.running.cluster import Cluster, Needs, connected
from autoprune.running.executor import Done, Executor, Failed, Opening, Progress, reference
from autoprune.running.freight import Freight
from autoprune.running.ray import RayExecutor
from autoprune.searching.candidate import trial_name

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STORE = 80_000_000
"""Bytes of a node's shared memory: the least that Ray takes is a little below."""


class Nodes:
    """A cluster of a head and other nodes, of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster = RayCluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self._others: list[Any] = []

    def add(self) -> None:
        self._others.append(self._cluster.add_node(num_cpus=1, object_store_memory=STORE))

    @property
    def count(self) -> int:
        return 1 + len(self._others)

    def kill(self) -> None:
        """Kill a node that is not the head, and all that runs there."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        found = Nodes()
        try:
            found.add()
            yield found
        finally:
            found.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    with connected(nodes.address, Needs()) as found:
        yield found


@pytest.fixture
def make_on_ray(cluster: Cluster, tmp_path: Path) -> Iterator[Make]:
    made: list[Executor] = []

    def make(
        opening: Callable[..., object] = open_context, workers: int = 1, **more: Any
    ) -> Executor:
        usual = {"word": "bone", "folder": str(tmp_path / "store")}
        executor = RayExecutor(
            cluster,
            Opening(function=reference(opening), spec=usual),
            root=tmp_path / "store",
            log_folder=tmp_path / "logs",
            workers=workers,
            **more,
        )
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.close()


class TestRay(ProcessContract):
    @pytest.fixture
    def make(self, make_on_ray: Make) -> Make:
        return make_on_ray

    @pytest.mark.parametrize("kind", ["python"])  # the others take as long again
    def test_a_job_without_memory_is_cut_short(self, make: Make, kind: str) -> None:
        super().test_a_job_without_memory_is_cut_short(make, kind)


def test_files_go_to_the_worker_and_come_back(make_on_ray: Make, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "in").mkdir(parents=True)
    (store / "in" / "a").write_bytes(b"one")
    (store / "b").write_bytes(b"stays at home")
    freight = Freight(needs=("in",), leaves=("out",), keeps=("saved",))
    executor = make_on_ray(open_folder, freight=lambda function, arguments: freight)
    executor.submit("a", copy, sources=["in/a", "in/a"], target="out/c")
    first = executor.next_event()
    assert isinstance(first, Progress)
    assert Path(first.value["folder"]) != store
    executor.answer("a", go_on=True)
    executor.next_event()
    assert (store / "saved" / "half").read_bytes() == b"half"
    executor.answer("a", go_on=True)
    assert executor.next_event() == Done(job="a", value={"there": ["in/a"]})
    assert (store / "out" / "c").read_bytes() == b"oneone"
    assert not (store / "secret").exists()


def test_a_node_of_another_version_is_refused(
    make_on_ray: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"autoprune": "99.0", "python": "3.11"}
    monkeypatch.setattr("autoprune.running.ray.versions", lambda: ours)
    executor = make_on_ray()
    executor.submit("a", count, up_to=1)
    failed = executor.next_event()
    assert isinstance(failed, Failed)
    assert (failed.fixable, failed.stops) == (True, True)
    assert "must have autoprune 99.0" in failed.cause


def test_more_than_a_node_has_is_refused(cluster: Cluster) -> None:
    for needs, words in ((Needs(cpus=64), "64 CPUs"), (Needs(gpus=0.5), "1 CPUs and 0.5 GPUs")):
        with pytest.raises(AutopruneError, match=words):
            Cluster(cluster.ray, needs).check()


# --- searches -----------------------------------------------------------------------------------


def trials_of(out: Path) -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="tiny", storage=storage).trials


def ended_in(out: Path) -> int:
    """Return how many trials have finished, while the search goes on."""
    return len(list((out / "candidates").glob("*/candidate.json")))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def on(nodes: Nodes, *more: object) -> tuple[object, ...]:
    return ("--engine", "ray", "--address", nodes.address, *more)


def agents_homes() -> list[Path]:
    import tempfile

    shelf = Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}"
    return [path for path in shelf.glob("*") if path.is_dir()]


def test_a_search_outlives_a_node(nodes: Nodes, tmp_path: Path) -> None:
    while nodes.count < 2:
        nodes.add()
    (tmp_path / "beside.py").write_text("WIDTH = 24\n")
    study = write_study(tmp_path / "study.py", epochs=20, before="from beside import WIDTH")
    out, budget = tmp_path / "out", 6
    search = start_cli(
        *("search", study, "--budget", budget, "--out", out, "--json", "--no-stop"),
        *("--tracking-uri", "none", *on(nodes)),
        cwd=tmp_path,
    )
    wait_for(lambda: ended_in(out) >= 2, search)
    nodes.kill()
    said, errors = search.communicate(timeout=180)
    assert search.returncode == 0, errors
    front = json.loads(said)  # and nothing of Ray's among it
    assert "raylet" not in errors
    trials = trials_of(out)
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == budget
    lost = [t for t in trials if t.state == TrialState.FAIL]
    assert lost
    assert all("was lost" in t.user_attrs["cause"] for t in lost)
    firsts = {t.user_attrs.get("retry_of", t.number) for t in lost}
    assert firsts <= {t.user_attrs.get("retry_of") for t in ended}
    store = Store(out)
    assert front["front"]
    assert front["rejected"] == []
    for entry in front["front"]:
        assert entry["verified"]
        assert store.is_intact(store.load_candidate(entry["name"]))
        autoprune.load(out / entry["path"], model=autoprune.load_study(study).build())
    for trial in ended:
        assert store.has_candidate(trial_name(trial.number))
    assert not list((out / "underway").glob("*"))
