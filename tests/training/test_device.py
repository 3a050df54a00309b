"""The one place that knows about accelerators, as far as a CPU can tell."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from autoprune.errors import AutopruneError
from autoprune.training.device import autocast, device_of, pick_device, to_device


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(AutopruneError, match=f"{name!r} is not"):
        pick_device(name)


def test_nests_move_whole() -> None:
    value = {"a": (torch.zeros(2), [torch.ones(1)]), "b": 3}
    moved = to_device(value, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert moved["a"][1][0].device.type == "meta"
    assert moved["b"] == 3


def test_the_device_of_a_model_is_its_parameters() -> None:
    assert device_of(torch.nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(torch.nn.ReLU()).type == "cpu"


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_mixed_precision_is_for_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(autocast(torch.device("cpu")), nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    context = autocast(torch.device("cuda"))
    assert isinstance(context, torch.autocast)
    assert context.fast_dtype is torch.bfloat16
