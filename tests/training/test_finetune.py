import copy
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import jitter, same_state
from torch import Tensor, nn

from autoprune import FineTune, SupervisedTask
from autoprune.errors import TrialError
from autoprune.pruning.plan import OPTIMIZERS, OptimizerName
from autoprune.training.distill import Teacher
from autoprune.training.finetune import dropout_layers, finetune

SETTINGS = FineTune(epochs=4, lr=0.02, batch_size=30)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 3)
    )


def trained(task: SupervisedTask, settings: FineTune = SETTINGS, **options: Any) -> nn.Module:
    model = net()
    list(finetune(model, task, settings, **options))
    return model


@pytest.mark.parametrize("epochs", [1, 3])
def test_yields_every_epoch(task: SupervisedTask, epochs: int) -> None:
    model = net()
    numbers = []
    for epoch in finetune(model, task, replace(SETTINGS, epochs=epochs)):
        numbers.append(epoch.epoch)
        assert epoch.valid == task.evaluate(model, "valid")
    assert numbers == list(range(1, epochs + 1))


def test_no_epochs_train_nothing(task: SupervisedTask) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    assert list(finetune(model, task, replace(SETTINGS, epochs=0))) == []
    assert same_state(model.state_dict(), before)


def test_trains_an_epoch_at_a_time(task: SupervisedTask) -> None:
    model = net()
    epochs = finetune(model, task, SETTINGS)
    next(epochs)
    assert int(model[1].num_batches_tracked) == 4  # 120 samples in batches of 30
    next(epochs)
    assert int(model[1].num_batches_tracked) == 8


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.02), ("muon", 0.1)])
def test_learns(task: SupervisedTask, optimizer: OptimizerName, lr: float) -> None:
    epochs = list(finetune(net(), task, replace(SETTINGS, optimizer=optimizer, lr=lr)))
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert epochs[-1].valid > 0.95


def test_a_seed_decides_everything(task: SupervisedTask) -> None:
    torch.manual_seed(17)
    first = trained(task, seed=1).state_dict()
    torch.manual_seed(99)
    assert same_state(trained(task, seed=1).state_dict(), first)
    assert not same_state(trained(task, seed=2).state_dict(), first)


def test_a_seed_decides_what_data_draw_from_numpy_and_python(task: SupervisedTask) -> None:
    task._augment = jitter
    first = trained(task, seed=1).state_dict()
    np.random.rand(3), random.random()
    assert same_state(trained(task, seed=1).state_dict(), first)
    assert not same_state(trained(task, seed=2**33).state_dict(), first)


def test_every_epoch_draws_anew_from_numpy_and_python(task: SupervisedTask) -> None:
    drawn = []

    def watched(inputs: Tensor) -> Tensor:
        drawn.append((np.random.rand(), random.random()))
        return inputs

    task._augment = watched
    trained(task, replace(SETTINGS, epochs=2))
    assert len(set(drawn)) == len(drawn) == 8


def test_every_epoch_has_its_own_order(task: SupervisedTask) -> None:
    orders = []

    class Watching(SupervisedTask):
        def step(self, model: nn.Module, batch: Any) -> Any:
            orders.append(batch.index.tolist())
            return super().step(model, batch)

    task.__class__ = Watching
    trained(task, replace(SETTINGS, epochs=2, batch_size=120))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(120))
    assert orders[0] != orders[1]


def test_the_loss_is_the_mean_over_batches(task: SupervisedTask) -> None:
    model = nn.Linear(8, 3)
    [batch] = task.batches("train", batch_size=120, seed=None)
    expected = F.cross_entropy(model(batch.inputs), batch.targets).item()
    [epoch] = finetune(model, task, FineTune(epochs=1, lr=1e-12, batch_size=40))
    assert epoch.loss == pytest.approx(expected, rel=1e-5)


def flat_task(task: SupervisedTask) -> SupervisedTask:
    """Make the loss flat, so that nothing but weight decay moves the weights."""
    data = next(iter(task.batches("train", batch_size=120, seed=None)))
    source = (data.inputs, data.targets)
    return SupervisedTask(
        train=source, valid=source, loss=lambda o, t: o.sum() * 0, scorer="accuracy"
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rate_rises_then_falls_and_only_weights_decay(
    task: SupervisedTask, optimizer: OptimizerName
) -> None:
    model = nn.Linear(8, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    settings = FineTune(epochs=3, lr=0.1, batch_size=30, weight_decay=0.5, optimizer=optimizer)
    steps, rising = 12, 2  # a fifth of the steps
    shrunk = 1.0
    for step in range(steps):
        if step < rising:
            share = 0.1 + 0.9 * step / rising
        else:
            share = (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
        shrunk *= 1 - 0.1 * share * 0.5
    list(finetune(model, flat_task(task), settings))
    torch.testing.assert_close(model.weight.detach(), weight * shrunk)
    assert torch.equal(model.bias, bias)


def test_frozen_parameters_stay(task: SupervisedTask) -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    list(finetune(model, task, SETTINGS))
    assert torch.equal(model[0].weight, frozen)


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_trial(task: SupervisedTask) -> None:
    data = next(iter(task.batches("train", batch_size=120, seed=None)))
    source = (data.inputs, data.targets)
    lost = SupervisedTask(train=source, valid=source, loss=lambda o, t: o.sum() * math.nan)
    with pytest.raises(TrialError, match=r"loss must stay finite, but became nan in epoch 1"):
        trained(lost)


def test_a_score_that_is_no_number_ends_the_trial(task: SupervisedTask) -> None:
    data = next(iter(task.batches("train", batch_size=120, seed=None)))
    source = (data.inputs, data.targets)
    lost = SupervisedTask(train=source, valid=source, scorer=lambda o, t: math.inf, metric="odd")
    with pytest.raises(TrialError, match=r"odd must stay finite.*learning rate 0\.02, batch size"):
        trained(lost)


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 0.05), (0.0, 0.0), (None, 0.3)])
def test_dropout_is_set(task: SupervisedTask, rate: float | None, expected: float) -> None:
    model = trained(task, replace(SETTINGS, epochs=1, dropout=rate))
    assert model[3].p == expected


def test_all_kinds_of_dropout_are_found() -> None:
    layers = [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.Dropout1d(), nn.Dropout3d()]
    model = nn.Sequential(nn.Linear(2, 2), *layers, nn.Sequential(nn.Dropout()))
    assert len(dropout_layers(model)) == 6


# --- distillation -------------------------------------------------------------------------------


def test_the_teacher_has_its_share_of_the_loss(task: SupervisedTask) -> None:
    student, dense = nn.Linear(8, 3), nn.Linear(8, 3)
    [batch] = task.batches("train", batch_size=120, seed=None)
    hard = F.cross_entropy(student(batch.inputs), batch.targets)
    soft = task.distance(student(batch.inputs), dense(batch.inputs), 3.0)
    settings = FineTune(epochs=1, lr=1e-12, batch_size=120, distill_weight=0.3, temperature=3.0)
    [epoch] = finetune(student, task, settings, teacher=Teacher(dense, task))
    assert epoch.loss == pytest.approx((0.7 * hard + 0.3 * soft).item(), rel=1e-5)


def test_distillation_moves_outputs_to_the_teachers(task: SupervisedTask) -> None:
    dense = net(seed=5).eval()  # untrained: agreeing with it is not agreeing with the targets
    [batch] = task.batches("valid", batch_size=120, seed=None)

    def apart(model: nn.Module) -> float:
        with torch.no_grad():
            answers = dense(batch.inputs)
            return float(task.distance(model.eval()(batch.inputs), answers, 2.0))

    taught = replace(SETTINGS, epochs=8, distill_weight=1.0, dropout=0.0)
    before = apart(net())
    after = apart(trained(task, taught, teacher=Teacher(copy.deepcopy(dense), task)))
    assert after < 0.2 * before
    assert apart(trained(task, replace(taught, distill_weight=0.0))) > after


class Silent:
    def outputs(self, batch: Any) -> Tensor:
        raise AssertionError("nobody may ask")


def test_without_weight_the_teacher_is_not_asked(task: SupervisedTask) -> None:
    taught = trained(task, teacher=Silent())
    assert same_state(taught.state_dict(), trained(task).state_dict())
