"""Exports: what cannot be written or run is missing, and said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.graph import find_groups
from autoprune.pruning.plan import FineTune, Plan
from autoprune.results.export import export_model, verify


def test_a_program_that_onnx_runtime_cannot_run_is_left_out(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).bfloat16()
    example = torch.randn(2, 4, dtype=torch.bfloat16)
    plan = Plan(widths={"0": 8}, criterion="l2", finetune=FineTune(epochs=1, lr=1e-3))
    folder = tmp_path / "m"
    exported = export_model(model, folder, example=example, plan=plan, about={})
    assert exported.formats == ("safetensors", "pt2")
    [problem] = exported.problems
    assert problem.startswith("onnx: ")
    assert not list(folder.glob("model.onnx*"))
    assert verify([folder]) == {"m": []}


def test_a_state_that_is_no_tensor_is_refused_at_once() -> None:
    class Versioned(nn.Sequential):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = super().forward(x)
            return answer

    with pytest.raises(AutopruneError, match="'_extra_state' is none"):
        find_groups(Versioned(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4))
