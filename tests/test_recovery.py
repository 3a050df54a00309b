"""What an earlier sitting left: told once, trained once, counted once."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import UNTRACKED, write_study
from optuna.trial import FrozenTrial, TrialState

from autoprune import run
from autoprune.progress import SilentReporter, Status
from autoprune.results.store import Store

pytestmark = pytest.mark.usefixtures("quick_export")

EPOCHS = 4
SETTINGS: dict[str, Any] = UNTRACKED | {"budget": 3, "early_stop": False}


@pytest.fixture(autouse=True)
def a_checkpoint_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.driver.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("autoprune.training.checkpoint.WORTH", 0.0)


def trials_of(out: Path, name: str = "tiny") -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage).trials


class Stopper(SilentReporter):
    """Stops the search as a user would, once a trial has come so far."""

    def __init__(self, name: str, epoch: int) -> None:
        self.at = name, epoch

    def update(self, status: Status) -> None:
        if any((r.name, r.epoch) == self.at for r in status.running):
            self.at = "", 0
            signal.raise_signal(signal.SIGINT)


def test_epochs_of_a_trial_that_goes_on_are_trained_and_counted_once(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", epochs=EPOCHS, final_epochs=3)
    out, whole = tmp_path / "out", tmp_path / "whole"
    run.search(study, out=whole, **SETTINGS)
    for stop in (Stopper("t001", 2), Stopper("t003", 3)):  # t002 is t001 once more
        with pytest.raises(KeyboardInterrupt):
            run.search(study, out=out, reporter=stop, **SETTINGS)
        assert list((out / "underway").glob("*.safetensors"))
    result = run.search(study, out=out, **SETTINGS)

    went_on = [t for t in trials_of(out) if t.user_attrs.get("resumed_epochs")]
    # The epoch that the user stopped at was told, and not asked to go on from: it came once more.
    assert [t.user_attrs["resumed_epochs"] for t in went_on] == [1, 2]
    assert all(t.user_attrs["epochs"] == EPOCHS for t in went_on)
    epochs = [json.loads((f / "front.json").read_text())["epochs"] for f in (out, whole)]
    assert epochs[0] == epochs[1] + 2
    ended = [[t for t in trials_of(f) if t.state == TrialState.COMPLETE] for f in (out, whole)]
    assert [t.user_attrs["curve"] for t in ended[0]] == [t.user_attrs["curve"] for t in ended[1]]
    assert [t.values for t in ended[0]] == [t.values for t in ended[1]]
    assert result.front
    assert not list((out / "underway").glob("*"))


class Killed(BaseException):
    """The end of the driver's process, for all that it does."""


@pytest.mark.parametrize("final", [False, True])
def test_a_candidate_that_was_written_and_not_told_is_told_and_not_trained_again(
    final: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = write_study(tmp_path / "study.py", final_epochs=2), tmp_path / "out"
    tell = optuna.Study.tell

    def die(self: optuna.Study, trial: Any, *arguments: Any, **more: Any) -> Any:
        store = Store(out)
        there = any(n.endswith("-final") for n in store.candidate_names())
        if there if final else store.has_candidate("t001"):
            raise Killed
        return tell(self, trial, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", die)
        with pytest.raises(Killed):
            run.search(study, out=out, **SETTINGS)
    name = "tiny-final" if final else "tiny"
    (untold,) = [t for t in trials_of(out, name) if t.state == TrialState.RUNNING]
    written = {p: p.stat().st_mtime_ns for p in out.glob("candidates/*/weights.safetensors")}
    run.search(study, out=out, **SETTINGS)
    told = trials_of(out, name)[untold.number]
    assert told.state == TrialState.COMPLETE
    assert not [t for t in trials_of(out, name) if "retry_of" in t.user_attrs]
    assert len(trials_of(out)) == 3
    candidate = Store(out).load_candidate(
        told.user_attrs["candidate"] + "-final" if final else "t001"
    )
    assert told.values == [candidate.score.valid, candidate.score.params]
    assert told.user_attrs["curve"] == list(candidate.curve)
    assert all(p.stat().st_mtime_ns == written[p] for p in written if p.exists())


def test_a_trial_whose_driver_was_killed_while_it_was_asked_for_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out, whole = write_study(tmp_path / "study.py"), tmp_path / "out", tmp_path / "whole"
    run.search(study, out=whole, **SETTINGS)
    note, count = optuna.trial.Trial.set_user_attr, 0

    def die(self: optuna.trial.Trial, name: str, value: Any) -> None:
        nonlocal count
        count += name == "parent"
        if count == 2:
            raise Killed
        note(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "set_user_attr", die)
        with pytest.raises(Killed):
            run.search(study, out=out, **SETTINGS)
    run.search(study, out=out, **SETTINGS)
    states = [t.state for t in trials_of(out)]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    ended = [[t for t in trials_of(f) if t.state == TrialState.COMPLETE] for f in (out, whole)]
    assert [(t.params, t.values) for t in ended[0]] == [(t.params, t.values) for t in ended[1]]
