"""Faults in the middle of a search: what is lost (nothing), what is said, how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import write_study
from optuna.trial import FrozenTrial, TrialState

from autoprune import run, searchrun
from autoprune.errors import AutopruneError
from autoprune.progress import SilentReporter
from autoprune.results.store import Store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("quick_export")]

ONE: dict[str, Any] = {"workers": 1, "tracking_uri": "none", "early_stop": False}

HERE = ONE | {"workers": 0}
"""In this process: a trial that has no memory left is cut short there, too."""

FAULT = """\
import os, signal, sys, time
from pathlib import Path

MARKS = Path({folder!r})


class Faulty(SupervisedTask):
    # Only a worker trains a smaller model than the dense one, and only the first `times` fail.
    def step(self, model, batch):
        small = sum(p.numel() for p in model.parameters()) < {dense}
        if small and {when}:
            marks = len(list(MARKS.glob("mark*")))
            if marks < {times}:
                (MARKS / f"mark{{marks}}").touch()
                {what}
        return super().step(model, batch)


SupervisedTask = Faulty
"""
DENSE_PARAMS = 64 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10


def faulty(folder: Path, what: str, *, times: int = 1, when: str = "True", **changes: Any) -> Path:
    """Write a study whose first `times` trials fall ill."""
    code = FAULT.format(folder=str(folder), dense=DENSE_PARAMS, times=times, when=when, what=what)
    return write_study(folder / "study.py", before=code, **changes)


def trials_of(out: Path, name: str = "tiny") -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage).trials


FAULTS = {
    "hang": ("time.sleep(600)", "longer than 10 s"),
    "torch memory": ("torch.empty(1 << 60, dtype=torch.uint8)", "no memory left"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
}


@pytest.fixture
def trials_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but trials meet the fault: a search cuts groups after its last one, too."""
    monkeypatch.setattr(searchrun, "note_sensitivity", lambda *a: None)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_hurts_is_left_out_when_finding_out_hurts(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, words = FAULTS[fault]
    monkeypatch.setattr(searchrun, "SENSITIVITY_LIMIT", 5.0)
    note_sensitivity = searchrun.note_sensitivity

    def after_the_trials(*given: Any) -> None:
        (tmp_path / "armed").touch()
        note_sensitivity(*given)

    monkeypatch.setattr(searchrun, "note_sensitivity", after_the_trials)
    out, notes = tmp_path / "out", Notes()
    study = faulty(tmp_path, what, when='(MARKS / "armed").exists()')
    result = run.search(study, out=out, budget=1, reporter=notes, **ONE)
    assert result.trials == {"complete": 1, "stopped": 0, "failed": 0}
    (note,) = [text for text in notes.told if text.startswith("Which groups hurt")]
    assert words.replace("10 s", "5 s") in note
    assert (tmp_path / "mark0").exists()
    assert not (out / "sensitivity.json").exists()


class Notes(SilentReporter):
    """Keeps what it is told that should stay on the screen."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


@pytest.mark.usefixtures("trials_alone")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_trial_that_was_cut_short_is_tried_again(fault: str, tmp_path: Path) -> None:
    what, words = FAULTS[fault]
    out = tmp_path / "out"
    limit = 10.0 if fault == "hang" else None
    study = faulty(tmp_path, what)
    result = run.search(study, out=out, budget=2, trial_timeout=limit, **ONE)
    failed, again, other = trials_of(out)
    assert failed.state == TrialState.FAIL
    assert words in failed.user_attrs["cause"]
    assert (again.state, other.state) == (TrialState.COMPLETE, TrialState.COMPLETE)
    assert (again.user_attrs["retry_of"], again.user_attrs["attempt"]) == (0, 1)
    assert again.params == failed.params
    assert result.trials == {"complete": 2, "stopped": 0, "failed": 1}
    assert not list((out / "underway").glob("*"))


@pytest.mark.usefixtures("trials_alone")
def test_a_trial_is_tried_no_more_than_three_times(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = faulty(tmp_path, FAULTS["torch memory"][0], times=4)
    run.search(study, out=out, budget=1, **HERE)
    trials = trials_of(out)
    assert [t.user_attrs.get("retry_of") for t in trials] == [None, 0, 0, None, 3]
    assert trials[-1].state == TrialState.COMPLETE
    assert trials[3].params != trials[0].params


@pytest.mark.usefixtures("trials_alone")
def test_many_failures_in_a_row_stop_the_search_with_their_cause(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = faulty(tmp_path, FAULTS["torch memory"][0], times=99)
    with pytest.raises(AutopruneError, match=r"5 trials in a row failed.*no memory left") as said:
        run.search(study, out=out, budget=9, **HERE)
    assert "\n" not in str(said.value)
    assert [t.state for t in trials_of(out)][:5] == [TrialState.FAIL] * 5
    (tmp_path / "study.py").write_text((tmp_path / "study.py").read_text().replace("99", "0"))
    assert run.search(study, out=out, budget=2, **HERE).trials["complete"] == 2


@pytest.mark.usefixtures("trials_alone")
def test_a_death_in_the_final_stage_is_made_up_for_in_that_sitting(tmp_path: Path) -> None:
    out = tmp_path / "out"
    when = 'Path("{0}").exists() and len(list(Path("{0}").glob("t*/candidate.json"))) >= 2'
    study = faulty(
        tmp_path,
        FAULTS["killed"][0],
        when=when.format(out / "candidates"),
        final_epochs=1,
    )
    run.search(study, out=out, budget=2, **ONE)
    assert [t.state for t in trials_of(out)] == [TrialState.COMPLETE] * 2
    finals = trials_of(out, "tiny-final")
    assert finals[0].state == TrialState.FAIL
    assert "signal 9" in finals[0].user_attrs["cause"]
    again = next(t for t in finals if t.user_attrs.get("retry_of") == finals[0].number)
    assert again.state == TrialState.COMPLETE
    assert again.user_attrs["candidate"] == finals[0].user_attrs["candidate"]
    assert again.user_attrs["seed"] == finals[0].user_attrs["seed"]
    assert Store(out).has_weights(again.user_attrs["candidate"] + "-final")
