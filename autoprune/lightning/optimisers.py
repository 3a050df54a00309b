"""A module's own optimiser and schedules, from what `configure_optimizers` returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from autoprune.errors import AutopruneError, first_line
from autoprune.lightning.checks import unlogged
from autoprune.lightning.listening import Heard, Stage, listening
from autoprune.lightning.metrics import metrics_in, reset
from autoprune.lightning.spelling import as_it_was, spelled_out
from autoprune.pruning.plan import FineTune
from autoprune.training.optimise import OneCycle, Optimisation, Optimizer

FORMS = (
    "an optimizer, ([optimizer], [schedulers]) or "
    "{'optimizer': optimizer, 'lr_scheduler': scheduler}"
)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning rate scheduler, and when it is stepped."""

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    """What a scheduler that waits for a plateau watches."""
    strict: bool = True
    """Whether it has to be logged."""

    def due(self, count: int, interval: str) -> bool:
        """Return whether it is stepped after so many epochs, or steps of an epoch."""
        return self.interval == interval and count % self.frequency == 0

    def check(self, logged: Mapping[str, Any]) -> None:
        """Raise `AutopruneError` if it waits for a metric that is not logged."""
        waits = isinstance(self.scheduler, ReduceLROnPlateau)
        if waits and self.monitor is None:
            raise AutopruneError(
                "ReduceLROnPlateau must be told what to watch, but `configure_optimizers` gives it "
                "no 'monitor'. Return {'optimizer': ..., 'lr_scheduler': ..., 'monitor': ...}."
            )
        if waits and self.strict and self.monitor not in logged:
            raise unlogged(str(self.monitor), logged)

    def step(self, logged: Mapping[str, Any]) -> None:
        """Step it by what was logged in the last validation, if there was one."""
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif logged:
            self.check(logged)
            if self.monitor is not None and self.monitor in logged:
                self.scheduler.step(logged[self.monitor])


def configured(module: Any, stage: Stage) -> tuple[torch.optim.Optimizer, tuple[Schedule, ...]]:
    """Return a module's one optimiser and its schedules.

    Raises
    ------
    AutopruneError
        If it has several optimisers or none, or one that wants a closure, or cannot be called.
    """
    name = f"`configure_optimizers` of {type(module).__name__}"
    try:
        with listening(module, stage, training=True):
            found = module.configure_optimizers()
    except AutopruneError:
        raise
    except Exception as error:
        raise AutopruneError(
            f"{name} must work for any training, but for one of {stage.max_epochs} epochs of "
            f"{stage.num_training_batches} batches raised {first_line(error)}."
        ) from error
    optimizers, schedules = _parts(found)
    if len(optimizers) != 1:
        raise AutopruneError(
            f"{name} must return {FORMS}, but returned {len(optimizers) or 'no'} optimizers. "
            f"Several need manual optimisation: give such a module a task of its own, as "
            f"docs/lightning.md shows."
        )
    optimizer = optimizers[0]
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise AutopruneError(
            f"{name} must return an optimizer that steps by gradients alone, but "
            f"{type(optimizer).__name__} evaluates the loss several times a step. Use AdamW or SGD."
        )
    return optimizer, schedules


def _parts(found: Any) -> tuple[list[torch.optim.Optimizer], tuple[Schedule, ...]]:
    """Take the forms that Lightning allows apart."""
    if isinstance(found, torch.optim.Optimizer):
        return [found], ()
    if isinstance(found, Mapping):
        return _of_mapping(found)
    if isinstance(found, (list, tuple)):
        if len(found) == 2 and isinstance(found[0], (list, tuple)):
            schedulers = found[1] if isinstance(found[1], (list, tuple)) else [found[1]]
            return list(found[0]), tuple(_schedule(s, None) for s in schedulers)
        taken = [_parts(entry) for entry in found]
        return [o for each, _ in taken for o in each], tuple(s for _, each in taken for s in each)
    if found is None:
        return [], ()
    raise AutopruneError(
        f"`configure_optimizers` must return {FORMS}, but returned a {type(found).__name__}."
    )


def _of_mapping(found: Mapping[str, Any]) -> tuple[list[torch.optim.Optimizer], Any]:
    if "optimizer" not in found:
        raise AutopruneError(
            f"`configure_optimizers` must return {FORMS}, but its dict has no 'optimizer'."
        )
    scheduler = found.get("lr_scheduler")
    schedules = () if scheduler is None else (_schedule(scheduler, found.get("monitor")),)
    return [found["optimizer"]], schedules


def _schedule(given: Any, monitor: str | None) -> Schedule:
    if not isinstance(given, Mapping):
        return Schedule(scheduler=given, monitor=monitor)
    return Schedule(
        scheduler=given["scheduler"],
        interval=given.get("interval", "epoch"),
        frequency=given.get("frequency", 1),
        monitor=given.get("monitor", monitor),
        strict=given.get("strict", True),
    )


def configured_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the peak learning rate that an optimiser was made with."""
    group = optimizer.param_groups[0]
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


class OwnOptimisation(Optimisation):
    """A module's own optimiser and schedules, all learning rates times one factor.

    The factor makes its peak the plan's `lr`. Weight decay and the schedules' shape are its own.
    What a sparsifier trains beside the module is trained by one cycle, as in any other training.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: FineTune,
        extra: Sequence[dict[str, Any]],
        stage: Stage,
    ) -> None:
        self._module: Any = module
        self._stage = stage
        self._optimizer, self._schedules = configured(module, stage)
        stage.optimizers = [self._optimizer]
        self._factor = settings.lr / (configured_rate(self._optimizer) or settings.lr)
        self._begun = self._in_epoch = False
        steps = stage.estimated_stepping_batches
        self._extra = OneCycle(nn.Module(), settings, steps, extra) if extra else None

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        return (self._optimizer, *(self._extra.optimizers if self._extra else ()))

    @property
    def lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"]) * self._factor

    def counts(self, model: nn.Module) -> bool:
        """Return whether a model's metrics are asked for: if its own epoch is under way."""
        return self._in_epoch and model is self._module

    def before_epoch(self, epoch: int) -> None:
        self._in_epoch = True
        reset(metrics_in(self._module))
        self._stage.current_epoch = epoch - 1
        self._stage.global_step = (epoch - 1) * self._stage.num_training_batches
        with self._heard():
            if not self._begun:  # one that goes on after a crash starts, too
                self._module.on_train_start()
            self._begun = True
            self._module.on_train_epoch_start()

    def step(self) -> None:
        with self._heard():
            self._module.on_after_backward()
            self._module.on_before_optimizer_step(self._optimizer)
        with self._scaled():
            super().step()

    def after_step(self) -> None:
        number = self._stage.global_step % self._stage.num_training_batches
        self._stage.global_step += 1
        if self._extra:
            self._extra.after_step()
        self._advance("step", number + 1)

    def after_epoch(self, valid: float) -> None:
        self._module.train()  # an epoch ends in training, though it was scored before
        with self._heard():
            self._module.on_train_epoch_end()
        self._module.eval()
        reset(metrics_in(self._module))
        self._in_epoch = False
        self._advance("epoch", self._stage.current_epoch + 1)

    def total_rate(self) -> float:
        """Go through the schedules, with steps that change nothing: there are no gradients.

        They are of no use afterwards.
        """
        total = 0.0
        self.zero_grad()
        for epoch in range(self._stage.max_epochs):
            for number in range(self._stage.num_training_batches):
                total += self.lr
                self._optimizer.step()
                self._advance("step", number + 1)
            self._advance("epoch", epoch + 1)
        return total

    def state(self) -> dict[str, Any] | None:
        told = {
            "schedules": [schedule.scheduler.state_dict() for schedule in self._schedules],
            "groups": [
                {name: value for name, value in group.items() if name != "params"}
                for group in self._optimizer.param_groups
            ],
            "extra": self._extra and self._extra.state(),
        }
        return spelled_out(told)

    def load_state(self, state: dict[str, Any]) -> None:
        found = as_it_was(state)
        for schedule, told in zip(self._schedules, found["schedules"], strict=True):
            schedule.scheduler.load_state_dict(told)
        for group, told in zip(self._optimizer.param_groups, found["groups"], strict=True):
            group |= told
        if self._extra:
            self._extra.load_state(found["extra"])

    @contextmanager
    def _heard(self) -> Iterator[Heard]:
        with listening(self._module, self._stage, training=True) as heard:
            yield heard

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        """Multiply the learning rates while the optimiser steps; schedules see their own."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * self._factor
        try:
            yield
        finally:
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _advance(self, interval: str, count: int) -> None:
        for schedule in self._schedules:
            if schedule.due(count, interval):
                schedule.step(self._stage.callback_metrics)
