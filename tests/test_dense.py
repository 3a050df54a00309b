"""What is known of the dense model, read back from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import FineTune, PruningStudy, SupervisedTask
from autoprune.dense import Dense, prepare_dense
from autoprune.groupwise import block_losses
from autoprune.progress import SilentReporter
from autoprune.pruning.files import write_json
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


def test_a_block_that_does_nothing_can_go_and_one_that_does_all_cannot(
    task: SupervisedTask, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Scaled(3.0), Scaled(0.0), nn.Linear(16, 3))
    study = PruningStudy(
        name="blocks",
        model=lambda: model,
        example=torch.zeros(1, 8),
        task=task,
        train=FineTune(epochs=1, lr=0.01),
        space=Space(depth=True),
    )
    store = Store(tmp_path)
    store.save_grouping(prunable_groups(study, model))
    bench = Workbench(study, store)
    before = torch.get_rng_state()
    losses = block_losses(bench, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert losses["2.block"] == pytest.approx(0.0, abs=1e-6)
    assert losses["1.block"] > 0.05


def test_an_earlier_versions_search_knows_nothing_of_blocks(
    task: SupervisedTask, tmp_path: Path
) -> None:
    assert read_back(VALUE, task, tmp_path).blocks == {}
    assert read_back(VALUE | {"blocks": {"a.block": 0.5}}, task, tmp_path).blocks == {
        "a.block": 0.5
    }
