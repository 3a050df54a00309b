"""Sparsifiers in a search: trained once, kept for others, charged, stopped, gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import UNTRACKED, run_cli, write_study
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import load_file
from torch import Tensor

from autoprune import evaluation, jobs, run, sparsified
from autoprune.pruning.plan import FineTune, Plan, Sparsify
from autoprune.results.store import Store
from autoprune.results.tracking import NullTracker, TrialRecord
from autoprune.run import prunable_groups
from autoprune.searching.candidate import DENSE, SPARSE, Candidate, Score
from autoprune.searching.space import Space, middle_recipe
from autoprune.sparsified import sparse_name
from autoprune.study import StudySource, load_study, source_of
from autoprune.training.calibrate import recalibrate
from autoprune.training.sparsify import SPARSIFIERS, sparsify
from autoprune.workbench import Workbench

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.usefixtures("quick_export"),
]

WIDTHS = {"conv1": 4, "conv2": 3}
TUNING = FineTune(epochs=2, lr=1e-2, batch_size=32)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(SPARSIFIERS)
    yield
    SPARSIFIERS.clear()
    SPARSIFIERS.update(before)


# --- one plan -----------------------------------------------------------------------------------


def job_of(job: Any, *, stop_after: int | None = None) -> tuple[list[dict[str, Any]], Any]:
    """Run a job; return what it yielded and its result."""
    heard = [next(job)]
    try:
        while True:
            heard.append(job.send(stop_after is None or len(heard) < stop_after))
    except StopIteration as end:
        return heard, end.value


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    study = load_study(write_study(tmp_path / "study.py", kind="conv"))
    store = Store(tmp_path / "out")
    store.save_grouping(prunable_groups(study, study.build()))
    made = Workbench(study, store)
    job_of(jobs.prepare_dense(made))
    return made


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Sparsify]:
    """Return what has been trained with a sparsifier, as it is."""
    done: list[Sparsify] = []

    def counted(model: Any, task: Any, settings: Any, chosen: Sparsify, **more: Any) -> Any:
        done.append(chosen)
        return sparsify(model, task, settings, chosen, **more)

    monkeypatch.setattr(sparsified, "sparsify", counted)
    return done


def plan(method: str = "group_lasso", **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "widths": WIDTHS,
        "criterion": "taylor",
        "finetune": TUNING,
        "sparsify": Sparsify(method=method, epochs=2),
    }
    return Plan(**(given | changes))


def evaluated(bench: Workbench, name: str, wanted: Plan, **more: Any) -> Any:
    parent = more.pop("parent", DENSE)
    job = jobs.evaluate(bench, name=name, plan=wanted.to_json(), parent=parent, seed=7)
    return job_of(job, **more)


def digests(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("method", ["group_lasso", "targeted_dropout", "hard_concrete"])
def test_the_parent_is_sparsified_and_then_scored_and_cut(bench: Workbench, method: str) -> None:
    dense = bench.store.weights(DENSE).read_bytes()
    dense_scores = bench.scores("taylor", bench.model(DENSE), bench.grouping, name=DENSE)
    scores_before = bench.store.scores(DENSE).read_bytes()
    wanted = plan(method)
    heard, result = evaluated(bench, "t001", wanted)
    assert [sorted(h) for h in heard] == [
        ["sparsify_cached"],
        ["sparsify", "valid"],
        ["sparsify", "valid"],
        ["epoch", "valid"],
        ["epoch", "loss", "valid"],
        ["epoch", "loss", "valid"],
    ]
    assert heard[0] == {"sparsify_cached": False}
    assert result["seconds"]["sparsify"] > 0
    assert bench.store.weights(DENSE).read_bytes() == dense
    assert bench.store.scores(DENSE).read_bytes() == scores_before

    # by hand: the same recipe on the dense model, scores on the sparsified weights
    doomed = {
        name: score.argsort(descending=True, stable=True)[WIDTHS[name] :].tolist()
        for name, score in dense_scores.groups.items()
    }
    model = bench.model(DENSE)
    for _ in sparsify(
        model, bench.task, middle_recipe(bench.study.space), Sparsify(method=method, epochs=2),
        grouping=bench.grouping, doomed=doomed, teacher=bench.teacher, seed=bench.study.seed,
    ):  # fmt: skip
        pass
    name = sparse_name(wanted, DENSE)
    saved = load_file(bench.store.weights(name))
    assert all(torch.equal(saved[n], t) for n, t in model.state_dict().items())
    recalibrate(
        model,
        bench.training_batches(
            samples=evaluation.RECALIBRATION_SAMPLES, batch_size=evaluation.RECALIBRATION_BATCH
        ),
    )
    scores = bench.scores("taylor", model, bench.grouping, name=None).groups
    cached = load_file(bench.store.scores(name))
    for group, width in WIDTHS.items():
        torch.testing.assert_close(cached[f"taylor/{group}"], scores[group])
        assert not torch.equal(scores[group], dense_scores.groups[group])
        best = sorted(scores[group].argsort(descending=True, stable=True)[:width].tolist())
        assert list(result["plan"]["kept"][group]) == best


def test_the_same_work_is_done_once_and_gives_the_same(
    bench: Workbench, trainings: list[Sparsify]
) -> None:
    evaluated(bench, "t001", plan(widths={"conv1": 6, "conv2": 6}))
    heard, result = evaluated(bench, "t002", plan())
    assert heard[0] == {"sparsify_cached": True}
    assert "sparsify" not in heard[1]
    assert len(trainings) == 1
    first = bench.store.weights("t002").read_bytes()
    for file in bench.store.folder(sparse_name(plan(), DENSE)).iterdir():
        file.unlink()
    evaluated(bench, "t002", plan())
    assert len(trainings) == 2
    assert bench.store.weights("t002").read_bytes() == first
    assert result is not None


def test_an_altered_file_of_a_sparsified_parent_is_made_anew(
    bench: Workbench, trainings: list[Sparsify]
) -> None:
    _, expected = evaluated(bench, "t001", plan())
    folder = bench.store.folder(sparse_name(plan(), DENSE))
    another = bench.store.weights("t001").read_bytes()
    for file in (folder / "weights.safetensors", folder / "scores.safetensors"):
        content = file.read_bytes()
        flipped = content[:-5] + bytes([content[-5] ^ 64]) + content[-4:]
        for harm in (content[:-9], flipped, another, b"[]"):
            file.write_bytes(harm)
            before = len(trainings)
            heard, result = evaluated(bench, "t002", plan())
            assert heard[0] == {"sparsify_cached": file.stem == "scores"}
            assert len(trainings) - before == (file.stem == "weights")
            assert result["sha256"] == expected["sha256"]
            assert file.read_bytes() == content


def test_what_is_the_same_work() -> None:
    name = sparse_name(plan(), DENSE)
    assert name.startswith(SPARSE)
    same = [
        plan(widths={"conv1": 1, "conv2": 1}),
        plan(criterion="l2"),
        plan(finetune=FineTune(epochs=9, lr=1.0)),
        plan(steps=3, reconstruct=True),
    ]
    assert {sparse_name(p, DENSE) for p in same} == {name}
    others = [
        sparse_name(plan(), "t001"),
        sparse_name(plan("l1"), DENSE),
        sparse_name(plan(sparsify=Sparsify(method="group_lasso", epochs=3)), DENSE),
        sparse_name(plan(sparsify=Sparsify(method="group_lasso", epochs=2, strength=2.0)), DENSE),
        sparse_name(plan("l2"), DENSE),
        sparse_name(plan("l2", criterion="l2"), DENSE),
        sparse_name(plan("l2", widths={"conv1": 1, "conv2": 1}), DENSE),
    ]
    assert len({name, *others}) == len(others) + 1


@pytest.mark.parametrize("after", [1, 2])
def test_a_job_told_to_stop_between_sparsify_epochs_leaves_nothing(
    bench: Workbench, after: int
) -> None:
    before = digests(bench.store.root)
    heard, result = evaluated(bench, "t001", plan(), stop_after=after)
    assert result is None
    assert len(heard) == after
    assert digests(bench.store.root) == before


def test_a_plan_as_wide_as_its_parent_is_not_sparsified(
    bench: Workbench, trainings: list[Sparsify]
) -> None:
    heard, result = evaluated(bench, "t001", plan(widths=bench.grouping.channels))
    assert [h["epoch"] for h in heard] == [0, 1, 2]
    assert not trainings
    assert "sparsify" not in result["seconds"]


def test_children_of_cut_parents_are_sparsified_too(bench: Workbench) -> None:
    wide = plan(widths={"conv1": 6, "conv2": 6}, sparsify=None)
    _, result = evaluated(bench, "t001", wide)
    bench.store.save_candidate(
        Candidate(
            name="t001", trial=1, plan=Plan.from_json(result["plan"]), parent=DENSE, epochs=2,
            score=Score(valid=0.5, params=result["params"], macs=1, size_bytes=1),
        )
    )  # fmt: skip
    for method in ("l2", "group_lasso"):
        for name in ("t002", "t003"):  # trained, then taken from the store
            _, result = evaluated(bench, name, plan(method), parent="t001")
            assert result["plan"]["widths"] == WIDTHS
        saved = [load_file(bench.store.weights(n)) for n in ("t002", "t003")]
        assert all(torch.equal(saved[0][n], saved[1][n]) for n in saved[0])


def test_it_goes_with_steps_and_reconstruction(bench: Workbench, trainings: list[Sparsify]) -> None:
    heard, result = evaluated(
        bench, "t001", plan(steps=2, reconstruct=True, finetune=FineTune(epochs=4, lr=1e-2))
    )
    assert len(trainings) == 1
    assert [h["step"] for h in heard if "step" in h] == [1, 1]
    assert result["plan"]["widths"] == WIDTHS


# --- the recipe ---------------------------------------------------------------------------------


def test_the_recipe_is_the_middle_of_the_space() -> None:
    space = Space(
        lr=(1e-3, 1e-1), batch_size=(16, 32, 64), weight_decay=(0.0, 0.2),
        distill_weight=(0.0, 1.0), temperature=(2.0, 8.0),
    )  # fmt: skip
    recipe = middle_recipe(space)
    assert recipe.lr == pytest.approx(1e-2)
    assert recipe.weight_decay == pytest.approx(0.1)  # 0 has no logarithm
    assert recipe.temperature == pytest.approx(4.0)
    assert (recipe.batch_size, recipe.distill_weight, recipe.dropout) == (32, 0.5, None)
    assert middle_recipe(space, fixed_batch_size=7).batch_size == 7
    fixed = Space(lr=0.5, batch_size=8, weight_decay=0.0, distill_weight=0.25, temperature=3.0)
    assert middle_recipe(fixed) == FineTune(
        epochs=1, lr=0.5, batch_size=8, weight_decay=0.0, distill_weight=0.25, temperature=3.0
    )


# --- a search -----------------------------------------------------------------------------------

AT_RANDOM = UNTRACKED | {"sampler": "random"}


def trials_of(out: Path, name: str = "tiny") -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage).trials


def epochs_of(trials: list[FrozenTrial]) -> int:
    return sum(t.user_attrs["epochs"] for t in trials)


def test_a_search_trains_once_charges_and_goes_on(
    tmp_path: Path, trainings: list[Sparsify]
) -> None:
    study = write_study(tmp_path / "study.py", kind="conv", epochs=2, final_epochs=1)
    out = tmp_path / "out"
    choices = ["none", "group_lasso"]
    first = run.search(study, out=out, budget=4, sparsify=choices, **AT_RANDOM)
    result = run.search(study, out=out, budget=9, sparsify=choices, **AT_RANDOM)
    trials, store = trials_of(out), Store(out)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 9
    assert {t.params["sparsify"] for t in trials} == set(choices)
    for trial in trials:
        candidate = store.load_candidate(f"t{trial.number:03d}")
        parent = trial.user_attrs["parent"]
        before = 0 if parent == DENSE else store.load_candidate(parent).epochs
        assert candidate.epochs == before + trial.user_attrs["epochs"]
        assert len(trial.user_attrs["curve"]) == 3
        chosen = candidate.plan.sparsify
        if chosen is None:
            assert trial.params["sparsify"] == "none"
            assert "sparsify_cached" not in trial.user_attrs
            assert trial.user_attrs["epochs"] == 2
            continue
        assert chosen == Sparsify(method=trial.params["sparsify"], epochs=3)
        cached = trial.user_attrs["sparsify_cached"]
        assert trial.user_attrs["sparsify_epochs"] == (0 if cached else 3)
        assert trial.user_attrs["epochs"] == 2 + trial.user_attrs["sparsify_epochs"]
        assert trial.user_attrs["seconds"]["sparsify"] > 0
    flags = [t.user_attrs["sparsify_cached"] for t in trials if "sparsify_cached" in t.user_attrs]
    works = {
        (t.user_attrs["parent"], t.params["sparsify"])
        for t in trials
        if t.params["sparsify"] != "none"
    }
    kept = list((out / "sparse").iterdir())
    assert flags.count(False) == len(trainings) == len(works) == len(kept)
    assert flags.count(True) >= 1
    final = trials_of(out, "tiny-final")
    assert all("sparsify_cached" not in t.user_attrs for t in final)
    assert result.epochs == epochs_of(trials) + epochs_of(final)
    assert json.loads((out / "front.json").read_text())["epochs"] == result.epochs
    assert 0 < first.epochs < result.epochs


def test_the_same_seed_gives_the_same_search(tmp_path: Path, trainings: list[Sparsify]) -> None:
    study = write_study(tmp_path / "study.py")
    settings: dict[str, Any] = {**AT_RANDOM, "sparsify": ["l1", "l2"], "sampler": "pruning"}
    for out in ("one", "other"):
        run.search(study, out=tmp_path / out, budget=4, **settings)
    outcomes = [
        [(t.params, t.user_attrs["curve"]) for t in trials_of(tmp_path / out)]
        for out in ("one", "other")
    ]
    assert outcomes[0] == outcomes[1]
    count = len(trainings)
    again = run.search(study, out=tmp_path / "one", budget=4, **settings)
    assert again.epochs == epochs_of(trials_of(tmp_path / "one"))
    assert len(trainings) == count  # nothing was left to do


def test_an_interrupt_between_sparsify_epochs_is_charged_and_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = write_study(tmp_path / "study.py"), tmp_path / "out"
    told = run.SearchRun._driver

    def interrupting(self: Any, executor: Any, dense: Any) -> Any:
        driver = told(self, executor, dense)
        hear = driver._hear

        def once(running: Any, value: Any) -> None:
            hear(running, value)
            if value.get("sparsify") == 2:
                raise KeyboardInterrupt

        driver._hear = once
        return driver

    with monkeypatch.context() as patch:
        patch.setattr(run.SearchRun, "_driver", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run.search(study, out=out, budget=2, sparsify=["l1"], **AT_RANDOM)
    trial, again = trials_of(out)
    assert (trial.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert trial.user_attrs["sparsify_epochs"] == trial.user_attrs["epochs"] == 2
    assert not (out / "sparse").exists()
    result = run.search(study, out=out, budget=2, sparsify=["l1"], **AT_RANDOM)
    assert result.trials == {"complete": 2, "stopped": 0, "failed": 1}
    assert result.epochs == epochs_of(trials_of(out)) >= 2 + 3 + 2


def test_records_tell_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[TrialRecord] = []
    monkeypatch.setattr(NullTracker, "trial", lambda self, record: records.append(record))
    study = write_study(tmp_path / "study.py")
    run.search(study, out=tmp_path / "out", budget=4, sparsify=["l1"], **AT_RANDOM)
    assert [r.metrics["epochs"] for r in records] == [
        1 + r.metrics["sparsify_epochs"] for r in records
    ]
    fresh = [r for r in records if not r.metrics["sparsify_cached"]]
    assert 0 < len(fresh) < len(records)
    for record in records:
        curve = record.curves.get("valid_sparsify", [])
        assert len(curve) == record.metrics["sparsify_epochs"] == (3 if record in fresh else 0)


# --- users' own ---------------------------------------------------------------------------------

OWN = """
import autoprune

@autoprune.sparsifier("fade", needs_targets=True)
class Fade(autoprune.Regulariser):
    def __init__(self, scope):
        self.scope = scope

    def after_step(self, lr):
        for group in self.scope.groups:
            factor = group.full(1.0)
            factor[list(group.doomed)] = 1 - min(1.0, 7 * lr / self.scope.total_lr)
            for part in group.parts:
                part.parameter.mul_(part.spread(factor))
"""
SPACE = """space=Space(epochs=1, criteria=("l2",), sparsify=("fade",), sparsify_epochs=2)"""


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sparsifier_of_the_users_own_is_searched_with(tmp_path: Path, workers: int) -> None:
    file = write_study(tmp_path / "study.py", before=OWN)
    text = file.read_text()
    head, _, rest = text.partition("    space=Space(")
    file.write_text(f"{head}    {SPACE},\n{rest.partition('    ),')[2]}")
    settings = {**AT_RANDOM, "workers": workers}
    result = run.search(file, out=tmp_path / "out", budget=2, **settings)
    assert result.front
    for trial in trials_of(tmp_path / "out"):
        assert trial.user_attrs["sparsify_epochs"] == 2
    weights = [load_file(f) for f in (tmp_path / "out" / "sparse").rglob("weights.safetensors")]
    assert len(weights) == 2
    for state in weights:
        assert float(_faded(state).min()) < 0.01 * float(_faded(state).max())


def _faded(state: dict[str, Tensor]) -> Tensor:
    return state["body.0.weight"].norm(dim=1)


@pytest.mark.usefixtures("registry")
def test_own_sparsifiers_go_to_workers_with_a_study_made_in_python(tmp_path: Path) -> None:
    made = load_study(write_study(tmp_path / "study.py", before=OWN))
    source = source_of(made)
    SPARSIFIERS.pop("fade")
    assert isinstance(source, StudySource)
    assert source.load().name == "tiny"
    assert SPARSIFIERS["fade"].needs_targets


def test_the_command_takes_sparsifiers(tmp_path: Path) -> None:
    write_study(tmp_path / "study.py")
    process = run_cli(
        "search", "study.py", "--sparsify", "l1, l2", "--budget", 2, "--workers", 0, "--out", "out",
        "--tracking-uri", "none", "--quiet", cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    chosen = [t.params["sparsify"] for t in trials_of(tmp_path / "out")]
    assert set(chosen) <= {"l1", "l2"}
    assert len(chosen) == 2
