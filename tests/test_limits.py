"""Limits: little data, a dense model that has learnt nothing, one group and 300, tiny budgets."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import MODELS, UNTRACKED, Here, write_study
from torch import nn

from autoprune import FineTune, PruningStudy, Space, SupervisedTask, run
from autoprune.progress import SilentReporter
from autoprune.pruning.cost import CostModel
from autoprune.pruning.graph import find_groups
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.history import PARAMS, VALID
from autoprune.searching.sampler import SAMPLERS, SamplerContext, make_sampler
from autoprune.searching.space import SearchSpace

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.usefixtures("quick_export"),
]


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def about(self, word: str) -> list[str]:
        return [note for note in self.notes if word in note]


def noted(study: PruningStudy | Path, folder: Path, **settings: Any) -> Notes:
    reporter = Notes()
    run.search(study, out=folder, reporter=reporter, **{"budget": 1, **UNTRACKED, **settings})
    return reporter


# --- data ---------------------------------------------------------------------------------------


def little(valid: int, *, train: int = 300) -> str:
    """Return code that leaves a study so many samples."""
    return (
        "Full = SupervisedTask\n"
        "SupervisedTask = lambda train, valid, test: Full("
        f"train=(inputs[-{train}:], targets[-{train}:]), "
        f"valid=(inputs[:{valid}], targets[:{valid}]), test=test)"
    )


def test_a_search_on_40_validation_samples_says_what_it_cannot_tell_apart(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", before=little(40))
    (said,) = noted(study, tmp_path / "out").about("validation split")
    assert "has 40 samples" in said
    points = float(re.search(r"closer than ([\d.]+) points", said)[1])  # type: ignore[index]
    # sqrt(2 p (1 - p) / 40) is 11 points at most, and 4.8 for 39 of 40.
    assert 4 < points < 12
    assert "\n" not in said


def test_a_search_that_goes_on_says_so_again(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", before=little(40))
    first = noted(study, tmp_path / "out").about("validation split")
    assert noted(study, tmp_path / "out", budget=2).about("validation split") == first


def test_a_small_calibration_set_works_and_is_noted(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", before=little(150, train=100))
    (said,) = noted(study, tmp_path / "out").about("training split")
    assert "100 samples" in said
    assert "256" in said


def test_enough_samples_are_not_worth_a_word(tmp_path: Path) -> None:
    x = torch.randn(12_000, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    study = PruningStudy(
        name="enough",
        model=lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        example=torch.zeros(2, 8),
        task=SupervisedTask(train=(x[:300], y[:300]), valid=(x[300:], y[300:])),
        train=FineTune(epochs=20, lr=1e-2),
        space=Space(epochs=1),
    )
    notes = noted(study, tmp_path / "out").notes
    assert [note for note in notes if "left out" not in note] == []


def test_a_test_score_that_is_undefined_is_none(tmp_path: Path, here: Here) -> None:
    def one_class(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        lone = len(targets.unique()) == 1
        return math.nan if lone else float((outputs.argmax(1) == targets).float().mean())

    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    ones = y[200:] == 1
    study = PruningStudy(
        name="undefined",
        model=lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        example=torch.zeros(2, 8),
        task=SupervisedTask(
            train=(x[:100], y[:100]),
            valid=(x[100:200], y[100:200]),
            test=(x[200:][ones], y[200:][ones]),
            scorer=one_class,
        ),
        space=Space(epochs=1),
    )
    (said,) = noted(study, tmp_path / "out").about("no test score")
    assert "one_class on the test split is no finite number for dense, t000" in said

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    front = json.loads((tmp_path / "out" / "front.json").read_text(), parse_constant=refuse)
    assert [model["test"] for model in (front["dense"], *front["front"])] == [None, None]
    for command in ("front", "pick", "report", "compare"):
        others = ["out"] if command == "compare" else []
        shown = here(command, "out", *others, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "nan" not in shown.stdout.lower()


# --- a dense model that has learnt nothing --------------------------------------------------------


def test_a_search_of_an_untrained_model_is_noted_and_goes_on(tmp_path: Path) -> None:
    # A note and no error: the trials' own training may be what teaches the model.
    study = write_study(tmp_path / "study.py", dense="checkpoint=None")
    notes = noted(study, tmp_path / "out")
    (said,) = notes.about("chance")
    assert "`train=FineTune(...)` or `checkpoint=`" in said
    assert (tmp_path / "out" / "front.json").exists()


def test_a_trained_model_beats_chance(tmp_path: Path) -> None:
    assert not noted(write_study(tmp_path / "study.py"), tmp_path / "out").about("chance")


@pytest.mark.parametrize("epochs", [0, 30])
def test_regression_is_measured_against_the_mean(epochs: int, tmp_path: Path) -> None:
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, 0] + x[:, 1] + 3
    study = PruningStudy(
        name="regression",
        model=lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)),
        example=torch.zeros(2, 8),
        task=SupervisedTask(train=(x[:300], y[:300]), valid=(x[300:], y[300:]), loss="mse"),
        train=FineTune(epochs=epochs, lr=1e-2) if epochs else None,
        space=Space(epochs=1),
    )
    assert bool(noted(study, tmp_path / "out").about("chance")) is (epochs == 0)


# --- one group, and 300 ---------------------------------------------------------------------------


def deep(layers: int, width: int = 8) -> nn.Sequential:
    """Return a perceptron with so many hidden layers, a group each."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 3))


def test_one_group_is_searched_by_every_sampler(tmp_path: Path) -> None:
    one = MODELS["mlp"].replace(
        "nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16)", "nn.Linear(64, 16)"
    )
    study = write_study(tmp_path / "study.py", model=one)
    for sampler in SAMPLERS:
        result = run.search(study, out=tmp_path / sampler, budget=5, sampler=sampler, **UNTRACKED)
        assert result.trials == {"complete": 5, "stopped": 0, "failed": 0}
        assert result.front[0].params < result.dense.params


def test_300_groups_are_searched(tmp_path: Path) -> None:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(96) % 3
    study = PruningStudy(
        name="deep",
        model=lambda: deep(300),
        example=torch.zeros(2, 8),
        task=SupervisedTask(train=(x[:64], y[:64]), valid=(x[64:], y[64:])),
        space=Space(epochs=1, batch_size=64, criteria=("l2", "taylor")),
    )
    result = run.search(study, out=tmp_path / "out", budget=4, **UNTRACKED)
    assert result.trials == {"complete": 4, "stopped": 0, "failed": 0}
    sizes = [m.params for m in result.front]
    assert min(sizes) < result.dense.params / 4
    assert sum(p.numel() for p in result.load(result.front[0].name).parameters()) == min(sizes)


@pytest.mark.parametrize("sampler", ["pruning", "tpe", "nsga2", "random"])
def test_samplers_propose_within_a_space_of_300_groups(sampler: str) -> None:
    grouping = find_groups(deep(300), torch.zeros(2, 8))
    assert len(grouping.groups) == 300
    cost = CostModel(grouping)
    allocator = Allocator(cost, sensitivity={g: float(i) for i, g in enumerate(cost.groups)})
    half = allocator.widths(allocator.dense_params // 2, Shape())
    assert 0.4 * allocator.dense_params < cost.params(half) <= allocator.dense_params // 2
    space = SearchSpace(channels=grouping.channels, space=Space(), has_dropout=False)
    context = SamplerContext(space=space, allocator=allocator, budget=8, seed=0)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=make_sampler(sampler, context)
    )
    sizes = set()
    for _ in range(8):
        trial = study.ask(space.distributions)
        widths = space.widths(trial.params)
        assert len(widths) == 300
        assert set(widths.values()) <= set(range(1, 9))
        params = cost.params(widths)
        trial.set_user_attr(VALID, 1 - 1 / params)
        trial.set_user_attr(PARAMS, params)
        study.tell(trial, [1 - 1 / params, params])
        sizes.add(params)
    assert len(sizes) > 4


# --- tiny budgets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_budget_smaller_than_the_openings_sizes_works(budget: int, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py")
    result = run.search(study, out=tmp_path / "out", budget=budget, **UNTRACKED)
    assert sum(result.trials.values()) == budget
    smaller = [m for m in result.front if m.params < result.dense.params]
    assert smaller
    if budget > 1:
        from autoprune.results.store import Store

        names = [f"t{number:03d}" for number in range(budget)]
        sizes = [Store(tmp_path / "out").load_candidate(n).score.params for n in names]
        # A sensible range: from most of the dense model to a tenth of it or less.
        assert max(sizes) > 0.4 * result.dense.params
        assert min(sizes) < result.dense.params / 10
