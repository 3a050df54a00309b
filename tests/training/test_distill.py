from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import SupervisedTask
from autoprune.training import distill
from autoprune.training.distill import Teacher


class Dense(nn.Module):
    """A model that counts how often it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layers(x)


class Two(Dense):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, -y


def first(outputs: Any, targets: Tensor) -> Tensor:
    return (outputs[0] if isinstance(outputs, tuple) else outputs).sum()


def with_(task: SupervisedTask, **settings: Any) -> SupervisedTask:
    [batch] = task.batches("train", batch_size=120, seed=None)
    source = (batch.inputs, batch.targets)
    return SupervisedTask(train=source, valid=source, **settings)


def answers(model: Dense, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model.layers.eval()(inputs)


def test_cached_answers_are_the_models(task: SupervisedTask) -> None:
    model = Dense()
    teacher = Teacher(model, task)
    for epoch in range(3):
        for batch in task.batches("train", batch_size=7, seed=epoch):
            torch.testing.assert_close(teacher.outputs(batch), answers(model, batch.inputs))
    assert model.runs == 1  # all 120 samples fit into one batch of its own


def test_large_splits_are_cached_in_parts(
    task: SupervisedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "_CACHE_BATCH", 50)
    model = Dense()
    teacher = Teacher(model, task)
    for batch in task.batches("train", batch_size=11, seed=1):
        torch.testing.assert_close(teacher.outputs(batch), answers(model, batch.inputs))
    assert model.runs == 3


def test_answers_too_large_to_cache_are_live(
    task: SupervisedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "CACHE_LIMIT_BYTES", 100)
    model = Dense()
    teacher = Teacher(model, task)
    batches = list(task.batches("train", batch_size=60, seed=1))
    for batch in batches:
        torch.testing.assert_close(teacher.outputs(batch), answers(model, batch.inputs))
    assert model.runs == 1 + len(batches)  # it tries once


def test_augmented_inputs_are_answered_live(task: SupervisedTask) -> None:
    augmented = with_(task, augment=lambda x: x + torch.randn_like(x))
    model = Dense()
    teacher = Teacher(model, augmented)
    for seed in (1, 2):
        [batch] = augmented.batches("train", batch_size=120, seed=seed)
        torch.testing.assert_close(teacher.outputs(batch), answers(model, batch.inputs))
    assert model.runs == 2


def test_several_outputs_are_answered_live(task: SupervisedTask) -> None:
    several = with_(task, loss=first)
    model = Two()
    teacher = Teacher(model, several)
    for seed in (1, 2):
        [batch] = several.batches("train", batch_size=120, seed=seed)
        one, other = teacher.outputs(batch)
        torch.testing.assert_close(one, answers(model, batch.inputs))
        assert torch.equal(one, -other)


def test_answers_carry_no_gradient(task: SupervisedTask) -> None:
    teacher = Teacher(Dense().train(), task)
    [batch] = task.batches("train", batch_size=120, seed=0)
    assert not teacher.outputs(batch).requires_grad
