"""Lineage over a whole search: what is kept, what finds its parent again, what can be rebuilt."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from helpers import UNTRACKED, write_study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from pretending import completed, driver_on
from safetensors.torch import load_file

import autoprune
from autoprune import evaluation, run
from autoprune.errors import AutopruneError
from autoprune.progress import SilentReporter, Status
from autoprune.pruning.cost import CostModel
from autoprune.pruning.files import file_digest
from autoprune.results.store import Store
from autoprune.running.executor import Done, Event, Failed
from autoprune.searching.candidate import DENSE, Candidate, trial_name
from autoprune.searching.pareto import front_of
from autoprune.searching.space import SearchSpace, Space
from autoprune.sparsified import sparse_name
from autoprune.study import load_study
from autoprune.training.finetune import Epoch, finetune

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def study_of(out: Path, name: str = "tiny") -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def candidates_of(out: Path) -> dict[str, Candidate]:
    """Return the candidates of the trials that the study holds as complete."""
    done = study_of(out).get_trials(states=(TrialState.COMPLETE,))
    return {trial_name(t.number): Store(out).load_candidate(trial_name(t.number)) for t in done}


def searched_twice(study: str, **changes: Any) -> str:
    """Let a study's text search more than the usual."""
    for name, value in changes.items():
        study = study.replace("criteria=", f"{name}={value!r},\n        criteria=")
    return study


# --- which weights are kept ---------------------------------------------------------------------


def kept(out: Path) -> set[str]:
    return {name for name in candidates_of(out) if Store(out).has_weights(name)}


def needed(out: Path, *costs: str) -> set[str]:
    """Return who is on the front of score and parameters, or on that over `costs`."""
    everyone = candidates_of(out).values()
    fronts = [front_of(everyone, higher_is_better=True, costs=c) for c in (("params",), costs)]
    return {c.name for front in fronts for c in front}


@pytest.mark.usefixtures("quick_export")
def test_only_possible_parents_and_exports_keep_their_weights(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # With this seed not all of the first six are on a front.
    study = write_study(tmp_path / "study.py", kind="conv", final_epochs=1, more="seed=1,")
    settings = UNTRACKED | {"objectives": "accuracy,macs,size", "sampler": "random"}
    first = run.search(study, out=out, budget=6, **settings)
    assert kept(out) == needed(out, "macs", "size")
    assert len(kept(out)) < len(candidates_of(out)) == 6
    assert {m.name for m in first.front} <= kept(out)
    finals = {p.parent.name for p in out.glob("candidates/*-final/weights.safetensors")}

    # What has lost its weights is history all the same: it is not done again, and still counts.
    result = run.search(study, out=out, budget=12, **settings)
    assert result.trials["complete"] == len(candidates_of(out)) == 12
    assert kept(out) == needed(out, "macs", "size")
    assert {m.name for m in result.front} <= kept(out)
    left = {p.parent.name for p in out.glob("candidates/*-final/weights.safetensors")}
    assert finals - left == {
        name for name in finals if name.removesuffix("-final") not in kept(out)
    }
    for file in out.glob("candidates/*/scores.safetensors"):
        assert file.with_name("weights.safetensors").exists()


@pytest.mark.usefixtures("quick_export")
def test_a_parent_is_kept_while_a_trial_waits_for_it(tmp_path: Path) -> None:
    out, settings = tmp_path / "out", UNTRACKED | {"sampler": "random", "budget": 6}
    study = write_study(tmp_path / "study.py")
    run.search(study, out=out, **settings)
    opened, store = study_of(out), Store(out)
    parent, *_ = sorted(set(candidates_of(out)) - kept(out))
    store.weights(parent).write_bytes(store.weights(DENSE).read_bytes())
    digest = file_digest(store.weights(DENSE))
    store.save_candidate(replace(store.load_candidate(parent), sha256=digest))
    waiting = opened.trials[store.load_candidate(parent).trial].params
    opened.enqueue_trial(waiting, user_attrs={"parent": parent, "retry_of": 99, "attempt": 1})
    run.search(study, out=out, **settings)  # the budget leaves nothing to start
    assert [t.state for t in study_of(out).trials[6:]] == [TrialState.WAITING]
    assert store.has_weights(parent)
    study_of(out).tell(study_of(out).ask(), state=TrialState.FAIL)
    run.search(study, out=out, **settings)
    assert not store.has_weights(parent)


RECIPE = {
    "criterion": "l2",
    "batch_size": 32,
    "lr": 1e-3,
    "weight_decay": 1e-3,
    "distill_weight": 0.5,
    "temperature": 2.0,
}


class Sprinters:
    """Pretends to run two jobs at once, which end in the order of the scores it is given."""

    slots = 2

    def __init__(self, store: Store, cost: CostModel, scores: dict[str, float]) -> None:
        self.store = store
        self.cost = cost
        self.scores = scores
        self.jobs: list[dict[str, Any]] = []
        self.parents: dict[str, str] = {}
        self.there: list[bool] = []
        """At each end of a job, whether the parents of all that run have weights."""

    def submit(self, job: str, function: object, **arguments: Any) -> None:
        self.jobs.append(arguments)
        self.parents[job] = arguments["parent"]

    def next_event(self) -> Event:
        self.there.append(all(self.store.has_weights(j["parent"]) for j in self.jobs))
        job = min(self.jobs, key=lambda j: list(self.scores).index(j["name"]))
        self.jobs.remove(job)
        return completed(job, self.scores[job["name"]], self.cost, self.store)

    def answer(self, job: str, *, go_on: bool) -> None: ...

    def close(self) -> None: ...


@dataclass
class Ground:
    """What a driver on pretended jobs stands on: a tiny network, and a study at random."""

    space: SearchSpace
    cost: CostModel
    store: Store
    study: optuna.Study


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    loaded = load_study(write_study(tmp_path / "study.py"))
    grouping, store = loaded.find_groups(loaded.build()), Store(tmp_path / "out")
    store.weights(DENSE).parent.mkdir(parents=True)
    store.weights(DENSE).touch()
    return Ground(
        SearchSpace(channels=grouping.channels, space=Space(epochs=1), has_dropout=False),
        CostModel(grouping),
        store,
        optuna.create_study(directions=["maximize", "minimize"], sampler=RandomSampler(seed=0)),
    )


def ask_for(ground: Ground, *plans: tuple[int, int]) -> None:
    """Put plans of these widths into the study's queue."""
    for widths in plans:
        plan = dict(zip(ground.space.channels, widths, strict=True))
        ground.study.enqueue_trial({**RECIPE, **ground.space.sparsities(plan)})


def test_a_parent_is_kept_while_another_worker_reads_it(ground: Ground) -> None:
    store = ground.store
    executor = Sprinters(store, ground.cost, {"t001": 0.4, "t000": 0.9, "t002": 0.8})
    driver = driver_on(executor, ground.space, ground.cost, store)
    ask_for(ground, (8, 8), (10, 9), (6, 6))
    driver.search(ground.study, budget=3, deadline=None)
    # t001 was done first, so t002 was cut from it; then t000 drove it off the front.
    assert executor.parents == {"t000": DENSE, "t001": DENSE, "t002": "t001"}
    assert executor.there == [True, True, True]
    assert {name for name in driver.pool.candidates if store.has_weights(name)} == {"t000", "t002"}


# --- the same parent again ----------------------------------------------------------------------

SLOW = """\
import time


class Slow(SupervisedTask):
    def step(self, model, batch):
        time.sleep(0.05)
        return super().step(model, batch)


SupervisedTask = Slow
"""


class Interrupter(SilentReporter):
    """Stops the search as a user would, in the first epoch of a trial that is no longer dense's."""

    def __init__(self) -> None:
        self.ended = 0
        self.statuses: list[Status] = []

    def update(self, status: Status) -> None:
        self.ended += status.ended is not None and status.stage == "search"
        if self.ended == 2 and status.running and status.running[0].valid is not None:
            self.ended = -100
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("sampler", ["pruning", "random"])
def test_a_trial_that_the_user_stopped_is_tried_again_as_it_was(
    sampler: str, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study.py", epochs=2)
    settings = UNTRACKED | {"budget": 4, "sampler": sampler, "early_stop": False}
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        run.search(study, out=out, reporter=Interrupter(), **settings)
    run.search(study, out=out, **settings)
    run.search(study, out=whole, **settings)
    stopped, again = study_of(out).trials[2:4]
    assert stopped.state == TrialState.FAIL
    assert stopped.user_attrs["cause"] == "interrupted"
    assert again.user_attrs["retry_of"] == stopped.number
    assert again.user_attrs["attempt"] == 0  # nobody's fault
    assert again.params == stopped.params
    for name in ("parent", "lineage", "seed"):
        assert again.user_attrs[name] == stopped.user_attrs[name]
    # What it comes to is what the search without an interruption found.
    same = study_of(whole).trials[2]
    assert (again.params, again.values) == (same.params, same.values)
    assert again.user_attrs["curve"] == same.user_attrs["curve"]


def chains(out: Path) -> Iterator[list[str]]:
    """Return every candidate's chain of parents, by what the candidates say."""
    store = Store(out)
    for name in candidates_of(out):
        chain = [name]
        while chain[-1] != DENSE:
            chain.append(store.load_candidate(chain[-1]).parent)
        yield chain


@pytest.mark.usefixtures("quick_export")
@pytest.mark.long
def test_a_killed_worker_breaks_no_lineage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", before=SLOW, epochs=2, final_epochs=1)
    killed: list[int] = []

    def kill_one() -> None:
        """Kill a worker in the middle of a trial that is cut from another one's weights."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if not (out / "study.journal").exists() or not list(out.glob("candidates/t*/c*.json")):
                continue
            running = study_of(out).get_trials(states=(TrialState.RUNNING,))
            if any(t.user_attrs.get("parent", DENSE) != DENSE for t in running):
                worker = psutil.Process().children()[0]
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = run.search(study, out=out, budget=6, workers=2, early_stop=False, tracking_uri="none")
    killer.join()
    assert killed
    assert result.trials["complete"] == 6
    trials = study_of(out).trials
    (failed,) = [t for t in trials if t.state == TrialState.FAIL]
    assert "signal 9" in failed.user_attrs["cause"]
    (again,) = [t for t in trials if "retry_of" in t.user_attrs]
    assert (again.user_attrs["retry_of"], again.user_attrs["attempt"]) == (failed.number, 1)
    assert again.params == failed.params
    assert again.user_attrs["parent"] == failed.user_attrs["parent"]
    assert again.state == TrialState.COMPLETE
    store, recorded = Store(out), {trial_name(t.number): t for t in trials}
    for name, *ancestors in chains(out):
        assert ancestors == recorded[name].user_attrs["lineage"]
        assert all(store.has_candidate(ancestor) for ancestor in ancestors[:-1])
    assert result.front
    for model in result.front:
        entry = result.load(model.name)
        assert sum(p.numel() for p in entry.parameters()) == model.params


class Deadly(Sprinters):
    """Every job is the end of its worker, until `lives` are used up."""

    slots = 1

    def __init__(self, store: Store, cost: CostModel, lives: int) -> None:
        super().__init__(store, cost, {trial_name(n): 0.5 for n in range(9)})
        self.lives = lives

    def next_event(self) -> Event:
        if not self.lives:
            return super().next_event()
        self.lives -= 1
        return Failed(job=self.jobs.pop()["name"], cause="Its worker ended.", died=True)


class OneDies(Sprinters):
    """The third job's worker dies."""

    def next_event(self) -> Event:
        event = super().next_event()
        died = event.job == trial_name(2)
        return Failed(job=event.job, cause="Its worker ended.", died=True) if died else event


def test_a_trial_that_is_tried_again_has_the_parent_it_had(ground: Ground) -> None:
    store = ground.store
    scores = {"t001": 0.4, "t000": 0.9, "t002": 0.0, "t003": 0.8}
    executor = OneDies(store, ground.cost, scores)
    driver = driver_on(executor, ground.space, ground.cost, store)
    ask_for(ground, (8, 8), (10, 9), (6, 6))
    driver.search(ground.study, budget=3, deadline=None)
    # By then t000 would be the better parent, and t001 was no more than waited for.
    assert executor.parents == {"t000": DENSE, "t001": DENSE, "t002": "t001", "t003": "t001"}
    again = ground.study.trials[3].user_attrs
    assert (again["retry_of"], again["lineage"]) == (2, ["t001", DENSE])
    assert {name for name in driver.pool.candidates if store.has_weights(name)} == {"t000", "t003"}


def test_a_trial_whose_worker_dies_is_tried_three_times(ground: Ground) -> None:
    executor = Deadly(ground.store, ground.cost, lives=4)
    driver = driver_on(executor, ground.space, ground.cost, ground.store)
    driver.search(ground.study, budget=1, deadline=None)
    trials = ground.study.trials
    assert [t.user_attrs.get("attempt", 0) for t in trials] == [0, 1, 2, 0, 1]
    assert [t.user_attrs.get("retry_of") for t in trials] == [None, 0, 0, None, 3]
    assert [str(t.params) for t in trials[:3]] == [str(trials[0].params)] * 3
    assert len({t.user_attrs["seed"] for t in trials[:3]}) == 1
    assert trials[3].params != trials[0].params
    assert [t.state for t in trials] == [TrialState.FAIL] * 4 + [TrialState.COMPLETE]


def test_trials_that_fail_by_themselves_are_not_tried_again(ground: Ground) -> None:
    class Faulty(Deadly):
        def next_event(self) -> Event:
            event = super().next_event()
            return replace(event, died=False) if isinstance(event, Failed) else event

    driver = driver_on(
        Faulty(ground.store, ground.cost, 1), ground.space, ground.cost, ground.store
    )
    driver.search(ground.study, budget=1, deadline=None)
    failed, other = ground.study.trials
    assert (failed.state, other.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert "retry_of" not in other.user_attrs
    assert other.params != failed.params


class Swollen(Sprinters):
    """The `first` jobs come to models of more parameters than their plans'."""

    slots = 1

    def __init__(self, store: Store, cost: CostModel, first: int) -> None:
        super().__init__(store, cost, {trial_name(n): 0.5 for n in range(20)})
        self.first = first

    def next_event(self) -> Event:
        event = super().next_event()
        if int(event.job.removeprefix("t")) < self.first and isinstance(event, Done):
            return replace(event, value=event.value | {"params": 10**6})
        return event


def test_models_that_are_not_their_plans_stop_the_search(ground: Ground) -> None:
    executor = Swollen(ground.store, ground.cost, first=20)
    driver = driver_on(executor, ground.space, ground.cost, ground.store)
    with pytest.raises(AutopruneError, match=r"5 trials in a row failed.*report this model"):
        driver.search(ground.study, budget=1, deadline=None)
    assert len(ground.study.trials) == 5


def test_a_trial_that_is_completed_ends_a_row_of_failures(ground: Ground) -> None:
    class EveryFifth(Swollen):
        def next_event(self) -> Event:
            self.first = 20 if len(self.parents) % 5 else 0
            return super().next_event()

    executor = EveryFifth(ground.store, ground.cost, first=0)
    driver = driver_on(executor, ground.space, ground.cost, ground.store)
    driver.search(ground.study, budget=2, deadline=None)
    done = [t.number for t in ground.study.trials if t.state == TrialState.COMPLETE]
    assert done == [4, 9]


# --- rebuilt from what is recorded --------------------------------------------------------------


class OfMyOwn(RandomSampler):
    """A sampler of the user's own."""


def space_of(study: Path, store: Store) -> SearchSpace:
    loaded = load_study(study)
    channels = {g.name: g.channels for g in store.load_grouping().groups}
    return SearchSpace(channels=channels, space=loaded.space, has_dropout=False)


SAMPLERS = ["pruning", "tpe", "nsga2", "gp", "random", OfMyOwn(seed=3)]


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s if isinstance(s, str) else "own")
def test_a_trials_parameters_alone_rebuild_its_widths(
    sampler: str | BaseSampler, tmp_path: Path
) -> None:
    out, store = tmp_path / "out", Store(tmp_path / "out")
    study = write_study(tmp_path / "study.py", kind="conv")
    run.search(study, out=out, budget=5, sampler=sampler, early_stop=False, **UNTRACKED)
    space, cost = space_of(study, store), CostModel(store.load_grouping())
    shapes = 0
    for trial in study_of(out).trials:
        candidate = store.load_candidate(trial_name(trial.number))
        widths = space.widths(trial.params)
        assert widths == candidate.plan.widths
        assert widths == {name: len(kept) for name, kept in candidate.plan.kept.items()}
        assert cost.params(widths) == candidate.score.params  # counted on the real model
        if store.has_weights(candidate.name):
            shapes += 1
            tensors = load_file(store.weights(candidate.name))
            for name, width in widths.items():
                assert tensors[f"{name}.weight"].shape[0] == width
            assert tensors["head.weight"].shape[1] == widths["conv2"]
    assert shapes


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights go that a search drops."""
    folder = tmp_path / "archive"
    folder.mkdir()
    drop = Store.drop_weights

    def drop_but_keep(store: Store, name: str) -> None:
        if store.has_weights(name):
            shutil.copy(store.weights(name), folder / f"{name}.safetensors")
        drop(store, name)

    monkeypatch.setattr(Store, "drop_weights", drop_but_keep)
    return folder


def same_weights(model: torch.nn.Module, file: Path) -> bool:
    recorded, replayed = load_file(file), model.state_dict()
    return recorded.keys() == replayed.keys() and all(
        torch.equal(recorded[name], replayed[name]) for name in recorded
    )


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("workers", [0, 1])
def test_its_lineage_gives_a_trials_exact_weights(
    workers: int, tmp_path: Path, archive: Path
) -> None:
    out, store = tmp_path / "out", Store(tmp_path / "out")
    study = write_study(tmp_path / "study.py", kind="conv", epochs=2, final_epochs=1)
    text = study.read_text().replace("batch_size=32,\n", "batch_size=(32, 64),\n", 1)
    study.write_text(
        searched_twice(
            text.replace('("taylor", "l2")', '("taylor", "flap", "hessian")'),
            steps=(1, 2),
            reconstruct=(False, True),
            sparsify=("none", "l1"),
            sparsify_epochs=1,
        )
    )
    settings = {"budget": 9, "seed": 4, "workers": workers, "early_stop": False}
    run.search(study, out=out, tracking_uri="none", **settings)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    longest = max(chains(out), key=len)
    assert len(longest) >= 3
    gone = {p.stem for p in archive.iterdir()}
    dropped = {name for name in gone if name.startswith("t")}
    assert dropped
    everyone = candidates_of(out)
    sparse = {
        sparse_name(c.plan, c.parent): c.parent
        for c in everyone.values()
        # Who only trains its parent on is not cut, and needs no sparsifier.
        if c.plan.sparsify is not None
        and (c.parent == DENSE or everyone[c.parent].plan.widths != c.plan.widths)
    }
    assert dropped & set(sparse.values())
    there = {f"sparse-{p.parent.name}" for p in out.glob("sparse/*/weights.safetensors")}
    assert there == {name for name, parent in sparse.items() if parent not in dropped}
    finals = [p.parent.name for p in out.glob("candidates/*-final/weights.safetensors")]
    names = [longest[0], sorted(dropped)[-1], finals[0]]
    for name in names if workers == 0 else names[:1]:
        again = autoprune.replay(out, name, study=study, in_process=workers == 0)
        assert again.valid == again.recorded == store.load_candidate(name).score.valid
        kept = store.weights(name) if name not in dropped else archive / f"{name}.safetensors"
        assert same_weights(again.model, kept)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("quick_export")
def test_a_replay_that_comes_out_different_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "out", Store(tmp_path / "out")
    study = write_study(tmp_path / "study.py", epochs=2)
    run.search(study, out=out, budget=4, **UNTRACKED)
    name = max(chains(out), key=len)[0]
    recorded = store.load_candidate(name).score.valid

    def elsewhere(*given: Any, seed: int, **more: Any) -> Iterator[Epoch]:
        """Train as another machine does: to nearly the same weights, and another score."""
        for epoch in finetune(*given, seed=seed + 1, **more):
            yield replace(epoch, valid=0.125)

    monkeypatch.setattr(evaluation, "finetune", elsewhere)
    again = autoprune.replay(out, name, study=study, in_process=True)
    assert (again.recorded, again.valid) == (recorded, 0.125)
    assert not same_weights(again.model, store.weights(name))


@pytest.mark.usefixtures("quick_export")
def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py")
    run.search(study, out=out, budget=1, **UNTRACKED)
    with pytest.raises(AutopruneError, match=r"Unknown finished trial 't00'.*Did you mean 't000'"):
        autoprune.replay(out, "t00", study=study)
    other = write_study(tmp_path / "other.py", kind="conv")
    with pytest.raises(AutopruneError, match="the one that was searched"):
        autoprune.replay(out, "t000", study=other)
    with pytest.raises(AutopruneError, match=r"must hold a search"):
        autoprune.replay(tmp_path, "t000", study=study)


# --- samplers that leave the space --------------------------------------------------------------


class Proposes(RandomSampler):
    """Proposes some values of its own, as `sample_relative` or as `sample_independent`."""

    def __init__(self, values: dict[str, Any], *, relative: bool) -> None:
        super().__init__(seed=0)
        self.values = values
        self.relative = relative

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if not self.relative:
            return {}
        return optuna.search_space.intersection_search_space(study.trials) or {
            name: optuna.distributions.FloatDistribution(0, 1) for name in self.values
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self.values) if self.relative else {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if not self.relative and param_name in self.values:
            return self.values[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sparsity/body.0": 1.7}, r"sparsity/body\.0 = 1\.7, which is not in FloatDistribution"),
        ({"sparsity/body.0": float("nan")}, r"raised ValueError"),
        ({"distill_weight": 7.0}, r"distill_weight = 7\.0, which is not in FloatDistribution"),
        ({"lr": -0.1}, r"raised ValueError"),
        ({"criterion": "magic"}, r"raised ValueError: 'magic' not in"),
        ({"sparsity/body.0": "half"}, r"raised ValueError"),
    ],
    ids=["too much", "nan", "no share", "no learning rate", "no such criterion", "a word"],
)
def test_values_outside_the_space_are_refused(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study.py")
    with pytest.raises(AutopruneError, match=rf"Proposes.*{said}") as caught:
        run.search(
            study,
            out=tmp_path / "out",
            budget=2,
            sampler=Proposes(values, relative=False),
            **UNTRACKED,
        )
    assert "\n" not in str(caught.value)
    again = run.search(study, out=tmp_path / "out", budget=1, **UNTRACKED)
    assert again.trials["complete"] == 1


@pytest.mark.usefixtures("quick_export")
def test_what_a_sampler_leaves_out_or_puts_too_high_together_is_drawn_by_itself(
    tmp_path: Path,
) -> None:
    study = write_study(tmp_path / "study.py")
    result = run.search(
        study,
        out=tmp_path / "out",
        budget=2,
        sampler=Proposes({"sparsity/body.0": 1.7}, relative=True),
        **UNTRACKED,
    )
    assert result.trials["complete"] == 2
    for trial in study_of(tmp_path / "out").trials:
        assert 0 <= trial.params["sparsity/body.0"] < 1
        assert {"criterion", "lr", "sparsity/body.2"} <= trial.params.keys()
