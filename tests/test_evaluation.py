"""The stages of a plan's evaluation, on a tiny trained network and without a driver."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_study
from nets import jitter
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune import evaluation, jobs, workbench
from autoprune.pruning.compensate import compensated
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import top_channels
from autoprune.pruning.groups import restrict
from autoprune.pruning.plan import FineTune, Plan, Sparsify
from autoprune.pruning.reconstruct import reconstructed
from autoprune.results.store import Store
from autoprune.run import prunable_groups
from autoprune.searching.candidate import DENSE, Candidate, Score
from autoprune.study import load_study
from autoprune.training.calibrate import recalibrate
from autoprune.training.finetune import finetune
from autoprune.workbench import Workbench


def run(job: Any, *, stop_after: int | None = None) -> tuple[list[dict[str, Any]], Any]:
    """Run a job; return what it yielded and its result."""
    heard = [next(job)]
    try:
        while True:
            heard.append(job.send(stop_after is None or len(heard) < stop_after))
    except StopIteration as end:
        return heard, end.value


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    study = load_study(write_study(folder / "study.py", kind="conv"))
    store = Store(folder / "out")
    store.save_grouping(prunable_groups(study, study.build()))
    made = Workbench(study, store)
    _, dense = run(jobs.prepare_dense(made))
    assert dense["valid"] > 0.4
    return made


WIDTHS = {"conv1": 4, "conv2": 3}
TUNING = FineTune(epochs=4, lr=1e-2, batch_size=32)


def plan(**changes: Any) -> Plan:
    return Plan(**{"widths": WIDTHS, "criterion": "taylor", "finetune": TUNING, **changes})


def evaluated(
    bench: Workbench, name: str, wanted: Plan, *, parent: str = DENSE, **more: Any
) -> tuple[list[dict[str, Any]], Any]:
    job = jobs.evaluate(bench, name=name, plan=wanted.to_json(), parent=parent, seed=7)
    return run(job, **more)


def state_of(bench: Workbench, name: str) -> dict[str, Tensor]:
    return load_file(bench.store.weights(name))


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[n], other[n]) for n in one)


def test_channels_are_scored_on_the_same_samples_whatever_data_draw_from(bench: Workbench) -> None:
    task = copy.copy(bench.task)
    task._augment = jitter  # type: ignore[attr-defined]
    drawing = Workbench(replace(bench.study, task=task), bench.store)

    def inputs() -> Tensor:
        batches = drawing.training_batches(samples=64, batch_size=32)
        return torch.cat([batch.inputs for batch in batches])

    first = inputs()
    np.random.rand(3), random.random(), torch.rand(3)
    assert torch.equal(inputs(), first)


# --- one step, by hand --------------------------------------------------------------------------


def by_hand(bench: Workbench, criterion: str, *, reconstruct: bool) -> nn.Module:
    dense = bench.model(DENSE)
    found = bench.scores(criterion, dense, bench.grouping, name=None)
    kept = {n: top_channels(found.groups[n], w) for n, w in WIDTHS.items()}
    source = dense
    if criterion == "flap":
        source = compensated(dense, bench.grouping, kept, found.input_means)
    model = cut(source, bench.grouping, kept)
    batches = list(
        bench.training_batches(
            samples=evaluation.RECALIBRATION_SAMPLES, batch_size=evaluation.RECALIBRATION_BATCH
        )
    )
    if reconstruct:
        model = reconstructed(dense, model, bench.grouping, kept, [b.inputs for b in batches])
    recalibrate(model, batches)
    for _ in finetune(model, bench.task, TUNING, teacher=bench.teacher, seed=7):
        pass
    return model


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("criterion", ["taylor", "l2", "flap"])
def test_a_plan_of_one_step_is_cut_mended_and_trained(
    bench: Workbench, criterion: str, reconstruct: bool
) -> None:
    name = f"one-{criterion}-{reconstruct}"
    heard, result = evaluated(bench, name, plan(criterion=criterion, reconstruct=reconstruct))
    assert [h["epoch"] for h in heard] == [0, 1, 2, 3, 4]
    assert not any("step" in h for h in heard)
    assert equal(
        by_hand(bench, criterion, reconstruct=reconstruct).state_dict(), state_of(bench, name)
    )
    assert ("reconstruct" in result["seconds"]) == reconstruct


def test_reconstruction_and_compensation_change_what_is_trained(bench: Workbench) -> None:
    models = [by_hand(bench, "flap", reconstruct=r).state_dict() for r in (False, True)]
    assert not equal(*models)
    dense = bench.model(DENSE)
    found = bench.scores("flap", dense, bench.grouping, name=DENSE)
    assert "head.weight" in found.input_means
    assert found.input_means["head.weight"].shape == (12,)


def test_reconstruction_makes_up_for_training(bench: Workbench) -> None:
    none = replace(TUNING, epochs=0)
    widths = {"conv1": 5, "conv2": 7}
    valid = []
    for reconstruct in (False, True):
        total = 0.0
        for criterion in ("l2", "taylor", "fisher", "random"):
            wanted = plan(
                widths=widths, criterion=criterion, finetune=none, reconstruct=reconstruct
            )
            heard, _ = evaluated(bench, f"mended-{criterion}-{reconstruct}", wanted)
            total += heard[0]["valid"]
        valid.append(total / 4)
    assert valid[1] > valid[0] + 0.05


# --- several steps ------------------------------------------------------------------------------


def test_the_curve_has_only_the_final_widths(bench: Workbench) -> None:
    heard, result = evaluated(bench, "three", plan(steps=3))
    assert [(h.get("step"), h["epoch"]) for h in heard] == [
        (1, 1), (2, 1), (None, 0), (None, 1), (None, 2)
    ]  # fmt: skip
    assert result["valid"] == heard[-1]["valid"]
    assert result["plan"]["widths"] == WIDTHS
    assert result["params"] == bench.cost.params(WIDTHS)


def test_scores_are_taken_anew_on_trained_weights(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, dict[str, int], dict[str, Tensor]]] = []
    scores = Workbench.scores

    def spy(self: Workbench, criterion: str, model: Any, grouping: Any, *, name: Any) -> Any:
        weights = {n: t.clone() for n, t in model.state_dict().items()}
        asked.append((name, grouping.channels, weights))
        return scores(self, criterion, model, grouping, name=name)

    monkeypatch.setattr(Workbench, "scores", spy)
    _, result = evaluated(bench, "spied", plan(steps=2))
    assert [name for name, _, _ in asked] == [DENSE, None]
    assert asked[1][1] == {"conv1": 6, "conv2": 6}  # half way from (8, 12) to (4, 3), by ratio
    # Trained since the cut: no row of the first convolution is a row of the dense one.
    dense, later = (weights["conv1.weight"] for _, _, weights in asked)
    assert (later[:, None] - dense[None]).flatten(2).abs().amax(2).min() > 0
    kept = result["plan"]["kept"]
    assert {n: len(k) for n, k in kept.items()} == WIDTHS


def test_kept_channels_nest_in_each_step_and_in_the_parent(bench: Workbench) -> None:
    widths = {"conv1": 6, "conv2": 8}
    _, result = evaluated(bench, "t000", plan(widths=widths, steps=2))
    parent = Plan.from_json(result["plan"])
    score = Score(valid=0.5, params=result["params"], macs=1, size_bytes=1)
    bench.store.save_candidate(
        Candidate(name="t000", trial=0, plan=parent, score=score, parent=DENSE, epochs=4)
    )
    _, result = evaluated(bench, "t001", plan(steps=3), parent="t000")
    child = Plan.from_json(result["plan"])
    for name, kept in child.kept.items():
        assert set(kept) <= set(parent.kept[name])
        assert list(kept) == sorted(kept)
    # The child's tensors have the shapes of the dense model cut to the channels it names.
    dense = cut(bench.model(DENSE), bench.grouping, child.kept).state_dict()
    assert {n: t.shape for n, t in state_of(bench, "t001").items()} == {
        n: t.shape for n, t in dense.items()
    }
    assert restrict(bench.grouping, child.kept).channels == WIDTHS


def test_steps_of_a_plan_that_cuts_nothing_change_nothing(bench: Workbench) -> None:
    whole = bench.grouping.channels
    for name, steps in (("whole-1", 1), ("whole-4", 4)):
        heard, _ = evaluated(bench, name, plan(widths=whole, steps=steps, reconstruct=steps > 1))
        assert [h["epoch"] for h in heard] == [0, 1, 2, 3, 4]
    assert equal(state_of(bench, "whole-1"), state_of(bench, "whole-4"))


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_job_told_to_stop_stops_in_every_stage(bench: Workbench, stop_after: int) -> None:
    name = f"stopped-{stop_after}"
    heard, result = evaluated(bench, name, plan(steps=3), stop_after=stop_after)
    assert len(heard) == stop_after
    assert result is None
    assert not bench.store.weights(name).exists()


def test_steps_train_in_other_orders(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    tune = evaluation.finetune

    def spy(*args: Any, seed: int, **kwargs: Any) -> Any:
        seeds.append(seed)
        return tune(*args, seed=seed, **kwargs)

    monkeypatch.setattr(evaluation, "finetune", spy)
    evaluated(bench, "seeds", plan(steps=3))
    assert len(set(seeds)) == 3
    assert seeds[-1] == 7  # as with one step


# --- the cache of scores ------------------------------------------------------------------------


def test_what_takes_long_is_measured_only_when_it_is_asked_for(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[bool, bool]] = []
    collect = workbench.collect

    def spy(*args: Any, **kwargs: Any) -> Any:
        passes.append((kwargs.get("curvature", False), kwargs.get("moments", False)))
        return collect(*args, **kwargs)

    monkeypatch.setattr(workbench, "collect", spy)
    dense = bench.model(DENSE)
    bench.store.scores(DENSE).unlink()
    found = {}
    for _ in range(2):
        for name in ("taylor", "wanda", "hessian", "fisher", "obs"):
            scores = bench.scores(name, dense, bench.grouping, name=DENSE)
            assert equal(found.setdefault(name, scores.groups), scores.groups)
            assert scores.input_means.keys() == {
                "conv2.weight", "conv3.weight", "head.weight"
            }  # fmt: skip
    assert passes == [(False, False), (True, False), (False, True)]
    fresh = bench.scores("hessian", dense, bench.grouping, name=None)
    assert equal(fresh.groups, found["hessian"])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_plan_by_any_criterion_is_evaluated(bench: Workbench, criterion: str) -> None:
    wanted = plan(criterion=criterion, finetune=replace(TUNING, epochs=1))
    heard, _ = evaluated(bench, f"by-{criterion}", wanted)
    assert 0 < heard[-1]["valid"] <= 1


def test_dense_lamp_scores_reach_the_driver(bench: Workbench, tmp_path: Path) -> None:
    made = Workbench(bench.study, Store(tmp_path))
    made.store.save_grouping(bench.grouping)
    _, dense = run(jobs.prepare_dense(made))
    assert {n: len(s) for n, s in dense["lamp"].items()} == bench.grouping.channels
    assert all(max(scores) == 1.0 for scores in dense["lamp"].values())


# --- cut short, and gone on with ----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 3, "reconstruct": True},
        {"sparsify": Sparsify(method="hard_concrete", epochs=3), "steps": 2},
    ],
    ids=["one step", "steps", "sparsifier"],
)
def test_a_trial_that_was_cut_short_comes_to_what_it_would_have_come_to(
    bench: Workbench, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.training.checkpoint.WORTH", 0.0)  # one after every epoch
    wanted = plan(**changes)
    every = {"name": "short", "seconds": 0.0}
    heard, result = evaluated(bench, "whole", wanted)
    trained = [told.get("epoch", told.get("sparsify", 0)) > 0 for told in heard]
    for cut_at in range(1, len(heard)):  # killed in every epoch
        shutil.rmtree(bench.store.root / "sparse", ignore_errors=True)
        job = jobs.evaluate(
            bench, name="short", plan=wanted.to_json(), parent=DENSE, seed=7, checkpoint=every
        )
        before = [next(job)]
        while len(before) <= cut_at:
            before.append(job.send(True))
        job.close()
        torch.manual_seed(cut_at)
        job = jobs.evaluate(
            bench, name="again", plan=wanted.to_json(), parent=DENSE, seed=7, checkpoint=every
        )
        after, again = run(job)
        went_on = "resumed" in after[0]
        told = (after[0]["resumed"] if went_on else []) + after[went_on:]
        assert told == heard, cut_at
        assert went_on == any(trained[:cut_at])
        if went_on:  # then nothing is trained twice
            assert len(after[0]["resumed"]) >= max(n for n in range(cut_at) if trained[n]) + 1
        assert again["sha256"] == result["sha256"]
        assert {n: v for n, v in again.items() if n != "seconds"} == {
            n: v for n, v in result.items() if n != "seconds"
        }
        assert equal(state_of(bench, "again"), state_of(bench, "whole"))
        bench.store.drop_checkpoint("short")


def test_a_trial_of_single_weights_goes_on_too(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study.py", before=SINGLE_WEIGHTS))
    store = Store(tmp_path / "out")
    store.save_grouping(prunable_groups(study, study.build()))
    made = Workbench(study, store)
    run(jobs.prepare_dense(made))
    widths = {name: max(count // 3, 1) for name, count in made.grouping.channels.items()}
    wanted = plan(widths=widths, criterion="l1", granularity="weight", steps=2)
    heard, _ = evaluated(made, "whole", wanted)
    every = {"name": "short", "seconds": 0.0}
    arguments = {"plan": wanted.to_json(), "parent": DENSE, "seed": 7, "checkpoint": every}
    job = jobs.evaluate(made, name="short", **arguments)
    assert [next(job), *(job.send(True) for _ in range(3))] == heard[:4]
    job.close()
    after, _ = run(jobs.evaluate(made, name="again", **arguments))
    assert after[0]["resumed"] + after[1:] == heard
    assert equal(state_of(made, "again"), state_of(made, "whole"))


SINGLE_WEIGHTS = """\
Settings = Space
Space = lambda **given: Settings(**{**given, "criteria": ("l1",)}, granularity="weight")
"""
