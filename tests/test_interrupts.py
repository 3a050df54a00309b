"""Ctrl-C and SIGTERM: trials parked, MLflow's runs closed, the front so far there, and go on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
from helpers import run_cli, start_cli, write_study
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

import autoprune
from autoprune.study import load_study

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

SLOW = """\
import time


class Slow(SupervisedTask):
    def step(self, model, batch):
        time.sleep(0.05)
        return super().step(model, batch)


SupervisedTask = Slow
"""
BUDGET = 4


def trials_of(out: Path) -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="tiny", storage=storage).trials


def runs_of(out: Path) -> Mapping[str, Run]:
    """Return MLflow's runs by trial; the search's own is under no name."""
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'autoprune'")
    runs = client.search_runs([experiment.experiment_id])
    return {run.data.tags.get("autoprune.trial", ""): run for run in runs}


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    ("number", "workers", "tracked"),
    [(signal.SIGINT, 0, False), (signal.SIGTERM, 2, True)],
    ids=["ctrl-c", "sigterm"],
)
def test_a_signal_keeps_what_is_finished_and_the_same_command_goes_on(
    number: signal.Signals, workers: int, tracked: bool, tmp_path: Path
) -> None:
    dense = "train=FineTune(epochs=2, lr=1e-2, batch_size=32)"
    write_study(tmp_path / "study.py", before=SLOW, epochs=2, dense=dense)
    command = ["search", "study.py", "--budget", BUDGET, "--workers", workers, "--out", "out"]
    command += [] if tracked else ["--tracking-uri", "none"]
    out = tmp_path / "out"
    candidates = out / "candidates"
    with start_cli(*command, cwd=tmp_path) as search:
        deadline = time.monotonic() + 120
        # The second one's files are written after the study was told of the first one.
        while len(list(candidates.glob("*/candidate.json"))) < 2:
            assert search.poll() is None, search.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        search.send_signal(number)
        _, said = search.communicate(timeout=120)
    assert search.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    stopped = json.loads((out / "front.json").read_text())  # what there was by then
    assert 1 <= stopped["trials"]["complete"] < BUDGET
    assert stopped["front"]
    for model in stopped["front"]:
        small = autoprune.load(out / model["path"], model=load_study(tmp_path / "study.py").build())
        assert sum(p.numel() for p in small.parameters()) == model["params"]
    parked = trials_of(out)
    assert not [t for t in parked if t.state == TrialState.RUNNING]
    again = [t for t in parked if t.state == TrialState.WAITING]
    interrupted = [t for t in parked if t.user_attrs.get("cause") == "interrupted"]
    assert len(again) == len(interrupted) <= max(workers, 1)
    if tracked:
        runs = runs_of(out)
        assert runs[""].info.status == "KILLED"
        assert not [run for run in runs.values() if run.info.status == "RUNNING"]
    kept = {p: p.read_bytes() for p in candidates.glob("*/candidate.json")}

    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trials = json.loads((out / "front.json").read_text())["trials"]
    assert trials["complete"] == BUDGET
    assert 0 <= trials["failed"] <= max(workers, 1)
    finished = {p.parent.name for p in candidates.glob("t*/candidate.json")}
    assert len(finished) in (4, 5)  # one may have been written, and not yet told, when it stopped
    assert all(path.read_bytes() == content for path, content in kept.items())
    if tracked:
        after = runs_of(out)
        assert after[""].info.run_id == runs[""].info.run_id
        assert {run.info.status for run in after.values()} <= {"FINISHED", "FAILED"}
        assert after[""].info.status == "FINISHED"
