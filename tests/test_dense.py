"""What is known of the dense model, read back from the store."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import FineTune, PruningStudy, SupervisedTask, groupwise, run
from autoprune.dense import Dense, prepare_dense
from autoprune.groupwise import block_losses
from autoprune.progress import SilentReporter
from autoprune.pruning.files import read_json, write_json
from autoprune.results.store import Store
from autoprune.run import prunable_groups
from autoprune.running.executor import Opening
from autoprune.running.inline import InlineExecutor
from autoprune.searching.space import Space
from autoprune.workbench import Workbench

VALUE: dict[str, Any] = {
    "valid": 0.75,
    "params": 8,
    "macs": 8,
    "size_bytes": 32,
    "calibration_samples": 256,
    "calibration_asked": 256,
    "sensitivity": {"0": -1.0},
}


class Scaled(nn.Module):
    """A residual block that adds `by` times what it makes of its input."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by * self.second(self.first(x).relu())


def read_back(value: dict[str, Any], task: SupervisedTask, folder: Path) -> Dense:
    store = Store(folder)
    write_json(store.dense_file, value)
    study = PruningStudy(
        name="known",
        model=lambda: nn.Linear(8, 3),
        example=torch.zeros(1, 8),
        task=task,
        train=FineTune(epochs=1, lr=0.1),
    )
    idle = InlineExecutor(Opening(function="helpers:open_nothing", spec={"word": "need for one"}))
    return prepare_dense(study, store, idle, SilentReporter(), latency=None)


@pytest.mark.parametrize(
    ("yardstick", "noise"),
    [
        ({}, 0.0),  # of an earlier version's search
        ({"yardstick": {"samples": 60, "standard_error": 0.05, "chance": 0.3}}, 0.05),
        ({"yardstick": {"samples": 60, "standard_error": None, "chance": None}}, 0.0),
    ],
    ids=["no yardstick", "known", "unknown"],
)
def test_the_noise_is_that_of_the_yardstick_if_there_is_one(
    yardstick: dict[str, Any], noise: float, task: SupervisedTask, tmp_path: Path
) -> None:
    dense = read_back(VALUE | yardstick, task, tmp_path)
    assert dense.noise == noise
    assert dense.score.valid == 0.75
    assert dense.sensitivity == {"0": -1.0}


def network(first: float, second: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), Scaled(first), Scaled(second), nn.Linear(16, 3))


def study_of(model: nn.Module, task: SupervisedTask) -> PruningStudy:
    return PruningStudy(
        name="blocks",
        model=lambda: copy.deepcopy(model),
        example=torch.zeros(1, 8),
        task=task,
        train=FineTune(epochs=8, lr=0.01),
        space=Space(epochs=(1, 4)),
        final_epochs=0,
        device="cpu",
    )


def losses_of(model: nn.Module, task: SupervisedTask, folder: Path) -> dict[str, float]:
    study, store = study_of(model, task), Store(folder)
    store.save_grouping(prunable_groups(study, model))
    before = torch.get_rng_state()
    losses = block_losses(Workbench(study, store), model)
    assert torch.equal(torch.get_rng_state(), before)
    return losses


def test_a_block_that_does_nothing_can_go_and_one_that_does_all_cannot(
    task: SupervisedTask, tmp_path: Path
) -> None:
    losses = losses_of(network(3.0, 0.0), task, tmp_path)
    assert losses["2.block"] == pytest.approx(0.0, abs=1e-6)
    assert losses["1.block"] > 0.05


def test_nothing_is_worse_than_a_loss_that_is_no_number(
    task: SupervisedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.5, math.nan, 0.75])
    monkeypatch.setattr(groupwise, "_loss", lambda *_: next(told))
    losses = losses_of(network(1.0, 1.0), task, tmp_path)
    assert losses == {"1.block": sys.float_info.max, "2.block": 0.25}
    assert json.loads(json.dumps(losses, allow_nan=False)) == losses


@pytest.mark.parametrize("harmless", [1, 2])
def test_a_search_drops_the_block_that_does_nothing_first(
    harmless: int, task: SupervisedTask, tmp_path: Path
) -> None:
    scales = (0.0, 3.0) if harmless == 1 else (3.0, 0.0)
    run.search(
        study_of(network(*scales), task),
        out=tmp_path,
        budget=4,
        workers=0,
        tracking_uri="none",
        extras=False,
    )
    store = Store(tmp_path)
    losses = read_json(store.dense_file)["blocks"]
    assert min(losses, key=lambda block: losses[block]) == f"{harmless}.block"
    plans = [store.load_candidate(name).plan.widths for name in store.candidate_names()]
    gone = [{n for n in ("1.block", "2.block") if not plan[n]} for plan in plans]
    assert {f"{harmless}.block"} in gone
    assert all(f"{harmless}.block" in each for each in gone if each)


def test_an_earlier_versions_search_knows_nothing_of_blocks(
    task: SupervisedTask, tmp_path: Path
) -> None:
    assert read_back(VALUE, task, tmp_path).blocks == {}
    assert read_back(VALUE | {"blocks": {"a.block": 0.5}}, task, tmp_path).blocks == {
        "a.block": 0.5
    }
