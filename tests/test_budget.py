"""What a search may spend in epochs, and whose weights it cuts trials from."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from helpers import UNTRACKED, write_study
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autoprune import run, searchrun
from autoprune.errors import AutopruneError
from autoprune.progress import SilentReporter, Status
from autoprune.pruning.plan import FineTune, Plan, Sparsify
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE, trial_name
from autoprune.searching.sampler import SamplerContext, make_sampler
from autoprune.settings import Settings
from autoprune.trialrun import shortened

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.usefixtures("quick_export"),
]


class Watcher(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.statuses: list[Status] = []
        self.notes: list[str] = []

    def update(self, status: Status) -> None:
        self.statuses.append(status)

    def note(self, message: str) -> None:
        self.notes.append(message)


def trials_of(out: Path, name: str = "tiny") -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    return optuna.load_study(
        study_name=name, storage=optuna.storages.JournalStorage(backend)
    ).trials


def trained(out: Path) -> int:
    """Return the epochs that a search has trained, counted from what its trials say of them."""
    return sum(t.user_attrs["epochs"] for n in ("tiny", "tiny-final") for t in trials_of(out, n))


# --- epochs -------------------------------------------------------------------------------------


def test_a_search_trains_for_no_more_epochs_than_it_may(tmp_path: Path) -> None:
    out, watcher = tmp_path / "out", Watcher()
    study = write_study(tmp_path / "study.py", epochs=3, final_epochs=2)
    result = run.search(study, out=out, budget_epochs=16, reporter=watcher, **UNTRACKED)
    assert result.epochs == trained(out)
    assert 14 <= result.epochs <= 16  # what is left would not pay for another final model
    finals = trials_of(out, "tiny-final")
    assert finals
    assert all(t.user_attrs["epochs"] == 2 for t in finals)
    told = [s for s in watcher.statuses if s.stage == "search"]
    assert {(s.total, s.unit) for s in told} == {(16, "epochs")}
    done = [s.done for s in told]
    assert done == sorted(done)
    assert done[-1] == sum(t.user_attrs["epochs"] for t in trials_of(out))


def test_the_last_trial_is_shortened_and_its_record_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", epochs=3)
    file = study.read_text().replace("epochs=3,", "epochs=(3, 4),")
    study.write_text(file)
    run.search(study, out=out, budget_epochs=5, sampler="random", **UNTRACKED)
    first, last = trials_of(out)
    left = 5 - first.params["epochs"]
    assert left in (1, 2)
    assert last.state == TrialState.COMPLETE
    assert last.user_attrs["epochs"] == left
    assert last.user_attrs["asked_epochs"] == last.params["epochs"] >= 3
    assert "asked_epochs" not in first.user_attrs
    candidate = Store(out).load_candidate(trial_name(last.number))
    assert candidate.plan.finetune.epochs == left
    assert len(candidate.curve) == left + 1

    run.search(study, out=out, budget_epochs=5, sampler="random", **UNTRACKED)
    assert len(trials_of(out)) == 2  # earlier sittings count


def test_a_shortened_trial_goes_through_the_final_stage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", epochs=3, final_epochs=1)
    study.write_text(study.read_text().replace("epochs=3,", "epochs=(3, 4),"))
    result = run.search(study, out=out, budget_epochs=3, **UNTRACKED)
    (trial,) = trials_of(out)
    assert trial.user_attrs["epochs"] == 3
    assert result.epochs == 3  # nothing is left for its final stage
    result = run.search(study, out=out, budget_epochs=4, **UNTRACKED)
    assert [t.user_attrs["epochs"] for t in trials_of(out, "tiny-final")] == [1]
    assert result.epochs == 4


def test_the_final_stage_takes_the_lowest_scores_first_when_it_cannot_take_all(
    tmp_path: Path,
) -> None:
    out, watcher = tmp_path / "out", Watcher()
    study = write_study(tmp_path / "study.py", epochs=1, final_epochs=3)
    run.search(study, out=out, budget=4, budget_epochs=7, reporter=watcher, **UNTRACKED)
    count = len(trials_of(out, "tiny-final"))
    front = [s for s in watcher.statuses if s.stage == "search"][-1].front
    assert len(trials_of(out)) + 3 * count == trained(out) <= 7
    assert count >= 1
    assert count < len(front)
    lowest = sorted(front, key=lambda point: point.valid)[:count]
    assert {t.user_attrs["parent"] for t in trials_of(out, "tiny-final")} == {
        point.name for point in lowest
    }
    assert any("get no final fine-tuning" in note for note in watcher.notes)


def test_epochs_of_failed_and_stopped_trials_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searchrun, "note_sensitivity", lambda *a: None)  # it evaluates, too
    sick = """\
class Sick(SupervisedTask):
    calls = 0

    def evaluate(self, model, split):
        Sick.calls += 1
        return float("nan") if Sick.calls == 4 else super().evaluate(model, split)


SupervisedTask = Sick
"""
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", epochs=4, before=sick, dense="")
    study.write_text(study.read_text().replace("    ,\n", ""))
    run.search(study, out=out, budget_epochs=9, **UNTRACKED)
    trials = trials_of(out)
    assert trials[0].state == TrialState.FAIL
    assert trials[0].user_attrs["epochs"] == 1
    assert trained(out) == 9


def test_epochs_of_a_trial_that_was_never_told_count(tmp_path: Path) -> None:
    """As when the driver is killed: the trial is still running in the journal."""
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", epochs=2)
    run.search(study, out=out, budget_epochs=2, **UNTRACKED)
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    opened = optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(backend))
    opened.ask().set_user_attr("epochs", 3)
    run.search(study, out=out, budget_epochs=7, **UNTRACKED)
    states = [t.state for t in trials_of(out)]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert trained(out) == 7


def test_a_plan_is_shortened_to_what_is_left() -> None:
    tuning = FineTune(epochs=9, lr=1e-3)
    plan = Plan(widths={"a": 1}, criterion="l2", finetune=tuning)
    sparse = Plan(
        widths={"a": 1}, criterion="l2", finetune=tuning, sparsify=Sparsify(method="l1", epochs=3)
    )
    assert shortened(plan, float("inf")) == plan
    assert shortened(plan, 9) == plan
    assert shortened(plan, 1).finetune.epochs == 1
    assert shortened(sparse, 12) == sparse
    assert shortened(sparse, 4).finetune.epochs == 1
    assert shortened(sparse, 4).sparsify == sparse.sparsify
    assert shortened(sparse, 3) == shortened(plan, 3)  # else no epoch would be left to fine-tune


def test_a_bound_is_fifty_trials_unless_epochs_bound_the_search() -> None:
    assert Settings().budget == 50
    assert Settings(budget_epochs=10).budget is None
    assert Settings(budget_epochs=10, budget=3).budget == 3
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(AutopruneError, match=r"`budget_epochs` must be.*at least 1 epoch"):
            Settings(budget_epochs=wrong)  # type: ignore[arg-type]


def test_both_bounds_hold(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", epochs=1)
    run.search(study, out=tmp_path / "out", budget=2, budget_epochs=50, **UNTRACKED)
    assert len(trials_of(tmp_path / "out")) == 2


# --- whose weights ------------------------------------------------------------------------------


class MySampler(TPESampler):
    """A sampler of the user's own."""


@pytest.mark.parametrize("sampler", ["pruning", "random", MySampler(seed=0)], ids=str)
def test_without_inheritance_every_trial_is_cut_from_the_dense_model(
    sampler: str | BaseSampler, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py")
    run.search(study, out=out, budget=5, sampler=sampler, inherit=False, **UNTRACKED)
    assert {t.user_attrs["parent"] for t in trials_of(out)} == {DENSE}
    run.search(study, out=out, budget=10, sampler="pruning", **UNTRACKED)
    assert {t.user_attrs["parent"] for t in trials_of(out)[5:]} != {DENSE}


def test_the_sampler_knows_whether_trials_inherit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def make(name: str, context: SamplerContext) -> BaseSampler:
        told.append(context.inherit)
        return make_sampler(name, context)

    monkeypatch.setattr("autoprune.searchrun.make_sampler", make)
    study = write_study(tmp_path / "study.py")
    run.search(study, out=tmp_path / "out", budget=1, inherit=False, **UNTRACKED)
    assert set(told) == {False}
    told.clear()
    run.search(study, out=tmp_path / "out", budget=2, **UNTRACKED)
    assert set(told) == {True}


def test_the_command_line_has_them() -> None:
    from typer.testing import CliRunner

    from autoprune.cli import app

    text = re.sub(r"\s+", " ", CliRunner().invoke(app, ["search", "--help"], color=False).output)
    for part in ("--budget-epochs", "--inherit", "--no-inherit", "[default: 50"):
        assert part in text
