"""Fine-tuning: one cycle of AdamW or Muon with distillation, a score per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from autoprune.errors import TrialError
from autoprune.pruning.plan import FineTune
from autoprune.training.checkpoint import Training, TrainingState
from autoprune.training.device import autocast, device_of, seed_beside_torch
from autoprune.training.distill import Teacher, to_batch
from autoprune.training.optimise import optimisation_for
from autoprune.training.regularise import Regulariser
from autoprune.training.task import Batch, Task

Keep = Callable[[Callable[[], TrainingState | None]], None]
"""Is offered a function that returns where training stands."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """How training stands after an epoch."""

    epoch: int
    loss: float
    valid: float


def finetune(
    model: nn.Module,
    task: Task,
    settings: FineTune,
    *,
    teacher: Teacher | None = None,
    seed: int = 0,
    regulariser: Regulariser | None = None,
    start: TrainingState | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place and yield its validation score after each epoch.

    The caller decides after each epoch whether to go on: a generator that is closed has trained
    no further than its last epoch.

    Parameters
    ----------
    model
        The model to train, on the device to train it on.
    settings
        ``(1 - distill_weight) * task loss + distill_weight * distance to the teacher`` is
        minimised by AdamW, its learning rate rising linearly to `lr` and falling as a cosine to 0;
        a task may have its own way, see `optimise`.
    teacher
        The dense model; None trains on the task's loss alone.
    seed
        Fixes the order of the data, the dropout masks, and what augmentation draws from the global
        random states of torch, NumPy and Python.
    regulariser
        What else acts on the weights; by default nothing.
    start
        Where an earlier run of the same training stood: it goes on with the next epoch, and comes
        to the very same. All else is given as it was at first.
    keep
        Is offered the state after every epoch, once the caller has asked for more.

    Raises
    ------
    TrialError
        If the loss or the score is not a number.
    """
    torch.manual_seed(seed)
    set_dropout(model, settings.dropout)
    device = device_of(model)
    extra = regulariser or Regulariser()
    steps = step_count(task, settings, seed=seed)
    optimisation = optimisation_for(task, model, settings, steps=steps, regulariser=extra)
    training = Training(model=model, optimisation=optimisation, regulariser=extra, device=device)
    if start is not None:
        training.load(start)
    for epoch in range(1 if start is None else start.epoch + 1, settings.epochs + 1):
        model.train()
        optimisation.before_epoch(epoch)
        total = torch.zeros((), device=device)
        count = 0
        epoch_seed = seed * 1_000 + epoch
        seed_beside_torch(epoch_seed)  # torch's state goes on, and is part of a checkpoint
        for batch in task.batches("train", batch_size=settings.batch_size, seed=epoch_seed):
            here = to_batch(batch, device)
            extra.before_step()
            loss = loss_of(model, task, here, settings, teacher)
            optimisation.zero_grad()
            penalty = extra.penalty()
            (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
            extra.after_backward()
            optimisation.step()
            with torch.no_grad():
                extra.after_step(optimisation.lr)
            optimisation.after_step()
            total += loss.detach()
            count += 1
        mean = float(total) / max(count, 1)
        check_finite(mean, "loss", epoch, settings)
        if epoch == settings.epochs:
            with torch.no_grad():
                extra.finish()
            valid = scored(task, model, epoch, settings)
        else:
            with extra.settled():
                valid = scored(task, model, epoch, settings)
        optimisation.after_epoch(valid)
        yield Epoch(epoch=epoch, loss=mean, valid=valid)
        if keep is not None:
            keep(partial(training.state, epoch))


def loss_of(
    model: nn.Module, task: Task, batch: Batch, settings: FineTune, teacher: Teacher | None
) -> Tensor:
    """Return what is minimised: the task's loss and the distance to the teacher, in shares."""
    with autocast(device_of(model)):
        loss, outputs = task.step(model, batch)
        if teacher is None or settings.distill_weight == 0 or outputs is None:
            return loss
        distance = task.distance(outputs, teacher.outputs(batch), settings.temperature)
        return torch.lerp(loss.float(), distance.float(), settings.distill_weight)


def step_count(task: Task, settings: FineTune, *, seed: int = 0) -> int:
    """Return how many optimiser steps fine-tuning takes."""
    batches = task.batches("train", batch_size=settings.batch_size, seed=seed)
    return len(batches) * settings.epochs


def scored(task: Task, model: nn.Module, epoch: int, settings: FineTune) -> float:
    """Return the validation score after `epoch`; raise `TrialError` if it is not a number."""
    valid = float(task.evaluate(model, "valid"))
    check_finite(valid, task.metric, epoch, settings)
    return valid


def set_dropout(model: nn.Module, rate: float | None) -> None:
    """Give every dropout layer the same rate; None leaves them as they are."""
    if rate is not None:
        for module in dropout_layers(model):
            module.p = rate


def dropout_layers(model: nn.Module) -> list[nn.modules.dropout._DropoutNd]:
    """Return the model's dropout layers."""
    return [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]


def check_finite(value: float, what: str, epoch: int, settings: FineTune) -> None:
    """Raise `TrialError` if a loss or a score is not a number."""
    if not math.isfinite(value):
        raise TrialError(
            f"The {what} must stay finite, but became {value} in epoch {epoch} "
            f"(learning rate {settings.lr:.2g}, batch size {settings.batch_size})."
        )
