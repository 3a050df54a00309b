"""Searches on a real Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from chaos import DRIVE
from contract import Make, ProcessContract, ended
from helpers import (
    ROOT,
    copy,
    count,
    environment,
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
from autoprune.searching.attributes import RESUMED
from autoprune.settings import Settings

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.long,
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


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


HELD = """\
import os, time, traceback
from pathlib import Path
from beside import MARKS

class Held(SupervisedTask):
    # A trial does not get on before two workers are at it, nor beyond its third epoch for now.
    scored = 0

    def evaluate(self, model, split):
        tuning = any(frame.name == "finetune" for frame in traceback.extract_stack())
        if tuning and sum(p.numel() for p in model.parameters()) < 2130:
            Held.scored += 1
            (Path(MARKS) / str(os.getpid())).touch()
            while len(os.listdir(MARKS)) < 2:
                time.sleep(0.05)
            while Held.scored > 3 and not (Path(MARKS) / "released").exists():
                time.sleep(0.05)
        return super().evaluate(model, split)

SupervisedTask = Held
"""


def held_study(folder: Path) -> Path:
    """Write a study whose trials wait in the middle, with code beside its file."""
    (folder / "marks").mkdir()
    (folder / "beside.py").write_text(f"MARKS = {str(folder / 'marks')!r}\n")
    return write_study(folder / "study.py", epochs=8, before=HELD)


def searching(study: Path, out: Path, **settings: Any) -> subprocess.Popen[str]:
    """Start a search whose trials keep how far they have come after every epoch."""
    script = DRIVE.format(tests=str(ROOT / "tests"))
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-c", script),
            *(str(study), str(out), json.dumps(settings), "2"),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_search_outlives_a_node_and_its_trial_goes_on_elsewhere(
    nodes: Nodes, tmp_path: Path
) -> None:
    study = held_study(tmp_path)
    out, budget = tmp_path / "out", 4
    ray = {"engine": "ray", "address": nodes.address, "tracking_uri": "none"}
    search = searching(study, out, budget=budget, early_stop=False, **ray)

    under_way = out / "underway"
    wait_for(lambda: len(list(under_way.glob("*.safetensors"))) == 2, search)
    nodes.kill()
    (tmp_path / "marks" / "released").touch()
    said, errors = search.communicate(timeout=300)
    assert search.returncode == 0, errors
    names = json.loads(said)  # and Ray has said nothing
    assert "raylet" not in errors
    trials = trials_of(out)
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == budget
    lost = [t for t in trials if t.state == TrialState.FAIL]
    assert lost
    assert all("was lost" in t.user_attrs["cause"] for t in lost)
    again = {t.user_attrs.get("retry_of"): t for t in finished}
    assert all(t.user_attrs.get("retry_of", t.number) in again for t in lost)
    if lost[0].user_attrs["epochs"]:  # else it was lost before an epoch of it was heard of
        assert again[lost[0].number].user_attrs[RESUMED] >= 1
    front, store = json.loads((out / "front.json").read_text()), Store(out)
    assert [entry["name"] for entry in front["front"]] == names
    assert front["rejected"] == []
    for entry in front["front"]:
        assert entry["verified"]
        assert store.is_intact(store.load_candidate(entry["name"]))
        autoprune.load(out / entry["path"], model=autoprune.load_study(study).build())
    assert not list((out / "underway").glob("*"))


def test_an_interrupted_search_leaves_nothing_on_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    study = held_study(tmp_path)
    search = start_cli(
        *("search", study, "--out", tmp_path / "out", "--tracking-uri", "none"),
        *("--engine", "ray", "--address", nodes.address),
        cwd=tmp_path,
    )
    wait_for(lambda: bool(ray_workers()), search)
    wait_for((tmp_path / "out" / "dense" / "dense.json").exists, search)
    time.sleep(0.5)
    workers = ray_workers()
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=120)
    assert search.returncode == 130, errors
    assert "Traceback" not in errors
    assert all(ended(worker) for worker in workers)
    assert not ray_workers()


def ray_workers() -> list[psutil.Process]:
    """Return the workers on this cluster's nodes; Ray's agents are their parents."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("autoprune.running.worker" in word for word in process.cmdline())
    ]


# --- what a user can mend -----------------------------------------------------------------------


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(AutopruneError, match=r"pip install 'autoprune\[ray\]'"),
        connected("", Needs()),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", "cannot be reached: Connection refused"),
        ("ray://127.0.0.1:{port}", "cannot be reached: Connection refused"),
        ("nonsense", "must be HOST:PORT"),
        ("host:99999", "must be HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(address: str, words: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        there = address.format(port=unused.getsockname()[1])
        with pytest.raises(AutopruneError, match=words), connected(there, Needs()):
            pass


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9"), "Ray: 2.9"),
        (ConnectionError("Could not find any running Ray instance."), "ray start --head"),
        (PermissionError("AuthenticationError: no token"), "auth_token"),
    ],
)
def test_what_ray_raises_at_first_becomes_one_line(raised: Exception, words: str) -> None:
    class Ray:
        def is_initialized(self) -> bool:
            return False

        def init(self, **_: Any) -> None:
            raise raised

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", Ray())
        with pytest.raises(AutopruneError, match=words) as said, connected("auto", Needs()):
            pass
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "dask"}, "must be 'local' or 'ray'"),
        ({"address": "auto"}, "Add --engine ray"),
        ({"gpus_per_trial": 1}, "Add --engine ray"),
        ({"engine": "ray", "workers": 0}, "at least 1"),
        ({"engine": "ray", "cpus_per_trial": 0}, "more than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AutopruneError, match=words):
        Settings(**settings)
