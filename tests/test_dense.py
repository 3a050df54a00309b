"""What is known of the dense model, read back from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import FineTune, PruningStudy, SupervisedTask
from autoprune.dense import Dense, prepare_dense
from autoprune.progress import SilentReporter
from autoprune.pruning.files import write_json
from autoprune.results.store import Store
from autoprune.running.executor import Opening
from autoprune.running.inline import InlineExecutor

VALUE: dict[str, Any] = {
    "valid": 0.75,
    "params": 8,
    "macs": 8,
    "size_bytes": 32,
    "calibration_samples": 256,
    "calibration_asked": 256,
    "sensitivity": {"0": -1.0},
}


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
