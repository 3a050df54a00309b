"""What the front benchmark's figures rest on: budgets, what is read of test, curves, intervals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import front
import front_grids
import front_peers
import front_search
import pytest
from front_bench import Bench, Work, chain_length, sizes, spread
from front_record import Record, size_of
from front_report import (
    Results,
    Run,
    ideas_table,
    interval,
    load,
    muon_table,
    paired,
    section,
    suited,
)
from front_tasks import TASKS, with_muon

from autoprune import FineTune
from autoprune.pruning.files import write_json

RECIPE = {
    "lr": 5e-3,
    "criterion": "l2",
    "distill_weight": 0.5,
    "batch_size": 32,
    "temperature": 4.0,
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Digits with 96 training images and a budget of 4 epochs, its dense model hardly trained."""
    task = replace(TASKS["digits"], dense=FineTune(epochs=1, lr=3e-3))
    work = Work(root=tmp_path, epochs=4, images=96)
    write_json(work.recipe("digits"), {"recipe": RECIPE})
    found = Bench(task, 0, work)
    found.train_dense()
    return found


def run_of(method: str, seed: int, *models: tuple[int, float, float | None, int]) -> Run:
    """Make a run of (params, valid, test, epochs), a CPU second for each epoch."""
    cells = [
        {"params": p, "valid": v, "epochs": e, "cpu": float(e)} | ({"test": t} if t else {})
        for p, v, t, e in models
    ]
    dense = {"params": 1000, "valid": 0.9, "test": 0.9}
    cell = {"models": cells, "dense": dense, "notes": [], "recipe": RECIPE, "commit": "abc"}
    return Run(method=method, seed=seed, cell=cell)


def test_epochs_are_split_without_losing_any() -> None:
    assert spread(100, 12) == [8] * 8 + [9] * 4
    assert [sum(spread(n, chain_length(n))) for n in (1, 4, 50, 100, 300)] == [1, 4, 50, 100, 300]
    assert sizes(5) == sorted(sizes(5), reverse=True)
    assert sizes(5, least=0.1)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "method", [front_grids.full_chain, front_grids.double_chain, front_grids.eta_half]
)
def test_a_method_spends_exactly_its_epochs(bench: Bench, method: object) -> None:
    record = Record()
    method(bench, record)  # type: ignore[operator]
    assert record.models[-1]["epochs"] == 4
    params = [model["params"] for model in record.models]
    assert params == sorted(params, reverse=True)
    assert params[-1] <= bench.dense_params / 316


def test_test_scores_are_read_of_front_models_only(bench: Bench) -> None:
    record = Record()
    model = bench.dense()
    record.add(model, 0.8, epochs=1)
    record.add(model, 0.7, epochs=1)  # beaten by the first
    record.add(model, 0.9, epochs=1)
    record.read_test(bench.task)
    assert ["test" in entry for entry in record.models] == [True, False, True]
    assert record.models[0]["test"] == bench.task.evaluate(model, "test")
    assert [entry["epochs"] for entry in record.models] == [1, 2, 3]


def test_what_is_done_in_a_pause_is_not_charged() -> None:
    record = Record()
    with record.paused():
        sum(range(10_000_000))
    assert record.spent()["cpu"] < 0.02


def test_torch_pruning_is_cut_to_at_most_the_sizes_asked_for(bench: Bench) -> None:
    pytest.importorskip("torch_pruning")
    record = Record()
    front_peers.uniform(bench, record)
    assert record.models[-1]["epochs"] == 4
    for model, share in zip(record.models, sizes(4), strict=True):
        assert 0.8 * share < model["params"] / bench.dense_params <= share


def test_optuna_scripts_leave_every_layer_a_channel(bench: Bench) -> None:
    pytest.importorskip("torch_pruning")
    roots = front_peers.roots_of(bench)
    smallest = front_peers.with_ratios(bench, roots, [0.97] * len(roots))
    least = bench.allocator.least_params
    assert least <= size_of(smallest) < 2 * least


def test_a_curve_judges_on_test_the_front_that_validation_chose() -> None:
    run = run_of("m", 0, (100, 0.8, 0.75, 2), (10, 0.7, 0.9, 4), (200, 0.6, None, 6))
    # log10 of 1000 / 100 is 1 decade of 2.5; half of accuracy above 0.5
    assert run.curve[0]["test"] == pytest.approx(0.25 * 1 / (2.5 * 0.5))
    assert run.curve[0]["valid"] == pytest.approx(0.3 * 1 / (2.5 * 0.5))
    # The small one is better than both on test, but validation does not know.
    assert run.curve[1]["test"] == pytest.approx(0.4 * 2 / (2.5 * 0.5))
    assert run.curve[2]["test"] == run.curve[1]["test"]
    assert run.accuracy(2) == 0.75
    assert run.accuracy(32) == 0.9
    assert run.accuracy(128) is None
    assert run.at("epochs", 3) == run.curve[0]["test"]
    assert run.at("epochs", 1) == 0


def test_a_volume_is_reached_only_when_it_stays() -> None:
    run = run_of("m", 0, (100, 0.7, 0.9, 1), (100, 0.8, 0.6, 2), (100, 0.85, 0.8, 3))
    best = run.curve[0]["test"]
    assert run.reaches(run.curve[2]["test"], "epochs") == 3
    assert run.reaches(best, "epochs") is None


def test_intervals_are_paired_over_common_seeds() -> None:
    assert interval([1.0]) is None
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    assert paired({0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.6, 5: 0.1}) == "+0.100 ± 0.000"
    assert paired({0: 0.5}, {1: 0.5}) == "-"


def test_the_section_has_losses_and_names_what_is_missing() -> None:
    better = run_of("chain", 0, (100, 0.9, 0.9, 2))
    worse = {seed: run_of("autoprune", seed, (100, 0.8, 0.8, 2)) for seed in (0, 1)}
    results = Results(
        task="digits", title="Digits", runs={"autoprune": worse, "chain": {0: better}}
    )
    text = section(
        [results], tasks=["digits"], methods=["autoprune", "chain", "fastnas"], seeds=[0, 1, 2]
    )
    assert "-0.080" in text
    assert text.endswith("Not run on digits: chain (seed 1); fastnas.")  # nothing with seed 2


def test_an_idea_s_worth_is_told_on_the_way_and_in_the_end() -> None:
    # Half the accuracy above 0.5 of 2 decades of 2.5 is 0.4; scouts are there after one epoch.
    scouted = {s: run_of("autoprune", s, (10, 0.75, 0.75, 1), (10, 0.75, 0.75, 10)) for s in (0, 1)}
    late = {s: run_of("no-scouts", s, (10, 0.75, 0.75, 10)) for s in (0, 1, 2)}
    results = Results(task="d", title="Digits", runs={"autoprune": scouted, "no-scouts": late})
    other = Results(task="v", title="ViT", runs={"autoprune": scouted})
    lines = ideas_table([results, other]).splitlines()
    assert lines[0].endswith("| Digits | ViT | all pairs |")
    early, late_on = "+0.400 ± 0.000 (2)", "+0.000 ± 0.000 (2)"
    assert lines[2:] == [
        f"| scouts | `no-scouts` | after 10 % | {early} | - | {early} |",
        f"| scouts | `no-scouts` | after 60 % | {early} | - | {early} |",
        f"| scouts | `no-scouts` | in the end | {late_on} | - | {late_on} |",
    ]


def results_of(task: str, *seeds: int, **scores: tuple[float, float]) -> Results:
    """Make results of runs of one small model each, given its scores on validation and test."""
    runs = {
        method: {seed: run_of(method, seed, (100, *both, 2)) for seed in seeds}
        for method, both in scores.items()
    }
    return Results(task=task, title="Digits", runs=runs)


def test_muon_is_set_beside_adamw_method_by_method() -> None:
    # A twentieth of accuracy is a tenth of the axis, of one decade of 2.5.
    adamw = results_of("d", 0, 1, 2, autoprune=(0.8, 0.8), chain=(0.7, 0.7), grid=(0.6, 0.6))
    muon = results_of("d-muon", 0, 1, autoprune=(0.85, 0.85), chain=(0.65, 0.65))
    assert muon_table([adamw, muon]).splitlines()[2:] == [
        "| autoprune | +0.040 ± 0.000 (2) |",
        "| chain | -0.040 ± 0.000 (2) |",
    ]


def test_every_method_may_have_the_optimiser_that_suits_it_on_validation() -> None:
    adamw = results_of("d", 0, 1, 2, autoprune=(0.8, 0.8), chain=(0.7, 0.7), grid=(0.9, 0.6))
    muon = results_of("d-muon", 0, 1, autoprune=(0.85, 0.75), chain=(0.65, 0.95))
    runs = suited((adamw, muon)).runs
    assert {name: [*by_seed] for name, by_seed in runs.items()} == {
        "autoprune": [0, 1], "chain, AdamW": [0, 1, 2], "grid, AdamW": [0, 1, 2],
    }  # fmt: skip
    assert runs["autoprune"] == muon.runs["autoprune"]
    assert runs["chain, AdamW"] == adamw.runs["chain"]


def test_a_task_with_muon_has_the_runs_that_no_recipe_changes(tmp_path: Path) -> None:
    methods, like = ["autoprune", "optuna-plain"], {"d": None, "d-muon": "d"}
    for task, method in (("d", "autoprune"), ("d", "optuna-plain"), ("d-muon", "autoprune")):
        cell = run_of(method, 3, (100, 0.8, 0.8, 2)).cell | {"seed": 3}
        write_json(tmp_path / task / f"{method}-s3.json", cell)
    found = load(tmp_path, {"d": "Digits", "d-muon": "With Muon"}, methods, like=like)
    assert [[*each.runs] for each in found] == [methods, methods]


def test_what_no_recipe_changes_is_run_once_for_both_optimisers() -> None:
    dense, _, runs = front.stages(["digits", "digits-muon"], ["chain", "optuna-plain"], [1])
    assert {cell.task for cell in dense} == {"digits"}
    assert [(cell.task, cell.method) for cell in runs] == [
        ("digits", "chain"),
        ("digits", "optuna-plain"),
        ("digits-muon", "chain"),
    ]


def test_with_muon_a_task_has_the_same_dense_model_and_every_training_muon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def score(_: Bench, recipe: dict[str, Any], number: int) -> float:
        tried.append(recipe["optimizer"])
        return -abs(recipe["lr"] - 2e-2)

    monkeypatch.setattr(Bench, "_try", score)
    other = Bench(with_muon(bench.spec), 0, bench.work)
    other.tune_recipe()
    assert {*tried} == {"muon"}
    assert other.recipe["lr"] == 2e-2
    assert other.dense_params == bench.dense_params
    assert other.settings(2).optimizer == front_search.space_of(other.recipe).optimizer == "muon"
    assert other.settings(2, **front_peers.PLAIN).optimizer == "adamw"
    assert bench.settings(2).optimizer == front_search.space_of(bench.recipe).optimizer == "adamw"
