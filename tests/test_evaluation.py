"""The stages of a plan's evaluation, on a tiny trained network and without a driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_study
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune import evaluation, jobs, workbench
from autoprune.pruning.compensate import compensated
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import top_channels
from autoprune.pruning.groups import restrict
from autoprune.pruning.plan import FineTune, Plan
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
