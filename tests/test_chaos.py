"""A search whose processes are killed at random moments loses nothing and does nothing twice.

``CHAOS=long`` runs the long form: 40 trials, 15 kills.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from chaos import Chaos
from helpers import write_study
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

import autoprune
from autoprune.results.store import Store
from autoprune.searching.candidate import trial_name

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LONG = os.environ.get("CHAOS") == "long"
TRIALS, KILLS = (40, 15) if LONG else (8, 3)
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def trials_of(out: Path, name: str = "tiny") -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage).trials


def test_killed_at_random_it_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", kind="conv", epochs=3, final_epochs=2)
    settings: dict[str, Any] = {"budget": TRIALS, "workers": 2}
    chaos = Chaos(study, out, settings, kills=KILLS, seed=int(os.environ.get("CHAOS_SEED", "0")))
    chaos.run()
    assert chaos.drivers + chaos.workers >= KILLS, chaos

    trials = trials_of(out)
    ended = [t for t in trials if t.state in ENDED]
    assert len(ended) == TRIALS
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    # None twice: of every first attempt and its retries, at most one has ended.
    firsts = Counter(t.user_attrs.get("retry_of", t.number) for t in ended)
    assert set(firsts.values()) == {1}
    works = Counter(t.user_attrs["work"] for t in ended)
    assert set(works.values()) == {1}

    store, front = Store(out), json.loads((out / "front.json").read_text())
    assert front["front"]
    assert front["rejected"] == []
    assert all(entry["verified"] for entry in front["front"])
    for entry in front["front"]:
        assert store.has_candidate(entry["name"])
        autoprune.load(out / entry["path"], model=autoprune.load_study(study).build())
    complete = {trial_name(t.number) for t in trials if t.state == TrialState.COMPLETE}
    assert complete <= set(store.candidate_names())
    assert not list((out / "underway").glob("*"))

    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'autoprune'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = Counter(run.data.tags.get("autoprune.trial", "") for run in runs)
    assert set(keys.values()) == {1}
    assert not [r for r in runs if r.info.status == "RUNNING"]
    by_key = {run.data.tags.get("autoprune.trial", ""): run for run in runs}
    for trial in ended:
        run = by_key[trial_name(trial.number)]
        complete_one = trial.state == TrialState.COMPLETE
        assert run.info.status == "FINISHED"
        assert run.data.tags["state"] == ("complete" if complete_one else "stopped")
        if complete_one:
            assert run.data.metrics["params"] == trial.user_attrs["params"]
    assert by_key[""].info.status == "FINISHED"


def found(out: Path) -> list[dict[str, Any]]:
    """Return what a search came to, whatever its trials are called."""
    store, front = Store(out), json.loads((out / "front.json").read_text())
    value = []
    for entry in front["front"]:
        candidate = store.load_candidate(entry["name"])
        exported = json.loads((out / entry["path"] / "plan.json").read_text())
        value.append(
            {
                "plan": candidate.plan.to_json(),
                "curve": candidate.curve,
                "seed": candidate.seed,
                "epochs": candidate.epochs,
                "weights": exported["sha256"],
                **{name: entry[name] for name in ("params", "macs", "valid", "test")},
            }
        )
    return value


@pytest.mark.usefixtures("quick_export")
def test_killed_and_gone_on_with_it_finds_what_it_would_have_found(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", kind="conv", epochs=3, final_epochs=2)
    settings: dict[str, Any] = {"budget": TRIALS, "workers": 1, "tracking_uri": "none"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Chaos(study, whole, settings, kills=0).run()
    chaos = Chaos(study, killed, settings, kills=min(KILLS, 5), seed=1, retries=99)
    chaos.run()
    assert chaos.drivers + chaos.workers >= min(KILLS, 5), chaos
    ends = [t for t in trials_of(whole) if t.state in ENDED]
    again = [t for t in trials_of(killed) if t.state in ENDED]
    assert [t.params for t in again] == [t.params for t in ends]
    assert [t.values for t in again] == [t.values for t in ends]
    assert found(killed) == found(whole)
