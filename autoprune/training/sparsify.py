"""Sparsifiers: training that drives whole channels to zero before anything is cut.

A sparsifier gets a `Scope` (the channels, how long training lasts, how strong to be) and returns
the hooks that act around each step. Add your own with `@sparsifier("name")`.

Usual strengths follow from the training ahead: a penalty is set so that what the loss does not
hold on to is gone at the end, whatever the epochs, the learning rate and the size of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import unknown
from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import FineTune, Sparsify
from autoprune.training.device import device_of
from autoprune.training.distill import Teacher
from autoprune.training.finetune import Epoch, finetune, step_count, total_rate
from autoprune.training.regularise import (
    Channels,
    Factors,
    Gated,
    Part,
    Regulariser,
    channels_of,
    joint_norm,
    scale,
)
from autoprune.training.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Scope:
    """What a sparsifier acts on, for how long and how strongly."""

    groups: tuple[Channels, ...]
    steps: int
    """Optimiser steps ahead."""
    total_lr: float
    """Sum of the learning rates of all steps."""
    strength: float
    """Factor on the method's own usual strength."""
    generator: torch.Generator
    """For whatever is drawn; on the model's device."""


Make = Callable[[Scope], Regulariser]


@dataclass(frozen=True, kw_only=True)
class Sparsifier:
    """A named way to train a model to need fewer channels."""

    name: str
    make: Make
    needs_targets: bool
    """Whether it must know which channels the plan would remove."""


SPARSIFIERS: dict[str, Sparsifier] = {}


def sparsifier(name: str, *, needs_targets: bool = False) -> Callable[[Make], Make]:
    """Register a sparsifier under `name`: a class or function that makes the hooks from a scope.

    With `needs_targets`, each group's `doomed` says which channels the plan would remove.

    Examples
    --------
    >>> @sparsifier("fade")
    ... class Fade(Regulariser):
    ...     def __init__(self, scope):
    ...         self.scope = scope
    ...
    ...     def after_step(self, lr):
    ...         for group in self.scope.groups:
    ...             scale(group.parts, group.full(1 - lr * self.scope.strength))
    >>> del SPARSIFIERS["fade"]
    """

    def register(make: Make) -> Make:
        SPARSIFIERS[name] = Sparsifier(name=name, make=make, needs_targets=needs_targets)
        return make

    return register


def get_sparsifier(name: str) -> Sparsifier:
    """Look a sparsifier up; raise `AutopruneError` with the choices if there is none."""
    if name not in SPARSIFIERS:
        raise unknown("sparsifier", name, SPARSIFIERS)
    return SPARSIFIERS[name]


def sparsify(
    model: nn.Module,
    task: Task,
    settings: FineTune,
    chosen: Sparsify,
    *,
    grouping: Grouping,
    doomed: Mapping[str, Sequence[int]] | None = None,
    teacher: Teacher | None = None,
    seed: int = 0,
) -> Iterator[Epoch]:
    """Train `model` in place with a sparsifier and yield its validation score after each epoch.

    After the last epoch it is a plain model again, of the same shapes. With a strength of 0, this
    is fine-tuning.

    Parameters
    ----------
    settings
        How to train; the epochs are those of `chosen`.
    grouping
        Describes `model`.
    doomed
        Channels that the plan would remove, by group; what `needs_targets` asks for.
    teacher, seed
        As in `finetune`.

    Raises
    ------
    TrialError
        If the loss or the score is not a number.
    """
    method = get_sparsifier(chosen.method)
    settings = replace(settings, epochs=chosen.epochs)
    steps = step_count(task, settings, seed=seed)
    regulariser = Regulariser()
    if chosen.strength > 0 and steps > 0:
        with torch.no_grad():
            regulariser = method.make(
                Scope(
                    groups=channels_of(model, grouping, doomed=doomed),
                    steps=steps,
                    total_lr=total_rate(settings, steps),
                    strength=chosen.strength,
                    generator=torch.Generator(device_of(model)).manual_seed(seed),
                )
            )
    yield from finetune(model, task, settings, teacher=teacher, seed=seed, regulariser=regulariser)


# --- shrinking ----------------------------------------------------------------------------------


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """Return sign(w) max(|w| - t, 0), the proximal operator of t |w|."""
    return weight.sign() * (weight.abs() - threshold).clamp_min(0)


def group_shrinkage(norms: Tensor, threshold: Tensor | float) -> Tensor:
    """Return max(1 - t / ||w_c||, 0) for each channel: the proximal operator of t ||w_c||."""
    return (1 - threshold / norms.clamp_min(1e-12)).clamp_min(0)


def typical(parts: Sequence[Part]) -> Tensor:
    """Return the root mean square of all the channels' entries in `parts`, a number."""
    squares = torch.stack([part.squares().sum() for part in parts]).sum()
    return (squares / sum(part.numel() * len(part.index) for part in parts)).sqrt()


L1_SHARE = 0.5


@sparsifier("l1")
class L1(Regulariser):
    def __init__(self, scope: Scope) -> None:
        self._limits: list[tuple[nn.Parameter, Tensor]] = []
        for group in scope.groups:
            for part in group.parts:
                rate = L1_SHARE * scope.strength * typical([part]) / scope.total_lr
                limit = part.spread(group.full(1.0) * rate, rest=0.0)
                self._limits.append((part.parameter, limit))

    def after_step(self, lr: float) -> None:
        for parameter, limit in self._limits:
            parameter.copy_(soft_threshold(parameter, lr * limit))


LASSO_SHARE = 1.0
LASSO_READERS = True


@sparsifier("group_lasso")
class GroupLasso(Regulariser):
    def __init__(self, scope: Scope) -> None:
        self._groups = []
        for group in scope.groups:
            parts = group.parts if LASSO_READERS else group.producers
            weight = math.sqrt(sum(p.numel() for p in parts))
            rate = LASSO_SHARE * scope.strength * typical(parts) * weight / scope.total_lr
            self._groups.append((parts, rate))

    def after_step(self, lr: float) -> None:
        for parts, rate in self._groups:
            scale(parts, group_shrinkage(joint_norm(parts), lr * rate))


GREG_DECAY = 7.0


@sparsifier("l2", needs_targets=True)
class GrowingL2(Regulariser):
    """Wang et al. 2021 (GReg-1)"""

    def __init__(self, scope: Scope) -> None:
        self._step = 0
        self._growth = 2 * GREG_DECAY * scope.strength / (scope.total_lr * scope.steps)
        self._masks = []
        for group in scope.groups:
            mask = group.full(0.0)
            mask[list(group.doomed)] = 1.0
            self._masks.append((group, mask))

    def after_step(self, lr: float) -> None:
        self._step += 1
        for group, mask in self._masks:
            scale(group.parts, 1 - mask * min(lr * self._growth * self._step, 1.0))


SLIM_SHARE = 0.7


@sparsifier("bn_l1")
class BatchNormL1(Regulariser):
    def __init__(self, scope: Scope) -> None:
        self._groups = []
        for group in scope.groups:
            measured = group.gammas or group.producers or group.readers
            weight = math.sqrt(sum(p.numel() for p in measured))
            rate = SLIM_SHARE * scope.strength * typical(measured) * weight / scope.total_lr
            self._groups.append((measured, group.producers or group.readers, rate))

    def after_step(self, lr: float) -> None:
        for measured, parts, rate in self._groups:
            scale(parts, group_shrinkage(joint_norm(measured), lr * rate))


# --- gates --------------------------------------------------------------------------------------


@sparsifier("targeted_dropout", needs_targets=True)
class TargetedDropout(Gated):
    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.groups)
        self._generator = scope.generator
        self._steps = scope.steps
        self._rate = min(scope.strength, 1.0)
        self._step = 0

    def factors(self, *, settled: bool) -> list[Factors]:
        ramp = min(self._step / max(TD_RAMP * self._steps, 1), 1.0)
        alpha = ramp * self._rate
        if not settled:
            self._step += 1
        found: list[Factors] = []
        for group in self.groups:
            lowest = joint_norm(group.weights).argsort()[: len(group.doomed)]
            factor = group.full(1.0)
            if settled:
                factor[lowest] = 1 - alpha * TD_MAX
                found.append((factor, factor))
                continue
            draws = torch.rand(len(lowest), generator=self._generator, device=factor.device)
            factor[lowest] = (draws >= alpha).float()
            found.append((None, factor))
        return found


TD_RAMP = 0.5
TD_MAX = 0.999


def kl_divergence(log_alpha: Tensor) -> Tensor:
    """Molchanov et al. 2017, eq. 14"""
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    negative = k1 * torch.sigmoid(k2 + k3 * log_alpha) - 0.5 * torch.log1p((-log_alpha).exp()) - k1
    return -negative


VD_KL = 0.02
VD_START = -4.0
VD_TRAVEL = 16.0
VD_THRESHOLD = 3.0


@sparsifier("variational_dropout")
class VariationalDropout(Gated):
    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.groups)
        self._scope = scope
        self._log_alpha = [group.full(VD_START).requires_grad_() for group in scope.groups]
        self._step = 0

    def trained(self) -> list[dict[str, Any]]:
        lr = VD_TRAVEL / self._scope.steps
        return [{"params": self._log_alpha, "lr": lr, "weight_decay": 0.0}]

    def penalty(self) -> Tensor:
        self._step += 1
        warm = min(1.0, self._step / (0.5 * self._scope.steps))
        kl = torch.stack([kl_divergence(a).mean() for a in self._log_alpha]).sum()
        return VD_KL * warm * self._scope.strength * kl

    def factors(self, *, settled: bool) -> list[Factors]:
        found: list[Factors] = []
        for log_alpha in self._log_alpha:
            alpha = log_alpha.clamp(max=8).exp()
            signal = (1 / (1 + alpha)).detach()
            if settled:
                kept = (log_alpha.detach() <= VD_THRESHOLD).float()
                found.append((signal, kept))
            else:
                noise = torch.randn(
                    alpha.shape, generator=self._scope.generator, device=alpha.device
                )
                found.append((signal, 1 + alpha.sqrt() * noise))
        return found


BETA, LOW, HIGH = 2 / 3, -0.1, 1.1


def active(log_alpha: Tensor) -> Tensor:
    """Louizos et al. 2018, eq. 12: the probability that a hard concrete gate is not zero."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


HC_L0 = 0.3
HC_START = 2.2
HC_TRAVEL = 16.0


@sparsifier("hard_concrete")
class HardConcrete(Gated):
    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.groups)
        self._scope = scope
        self._log_alpha = [group.full(HC_START).requires_grad_() for group in scope.groups]

    def trained(self) -> list[dict[str, Any]]:
        lr = HC_TRAVEL / self._scope.steps
        return [{"params": self._log_alpha, "lr": lr, "weight_decay": 0.0}]

    def penalty(self) -> Tensor:
        share = torch.stack([active(a).mean() for a in self._log_alpha]).mean()
        return HC_L0 * self._scope.strength * share

    def factors(self, *, settled: bool) -> list[Factors]:
        return [self._gates(a, settled=settled) for a in self._log_alpha]

    def _gates(self, log_alpha: Tensor, *, settled: bool) -> Factors:
        logit = log_alpha
        if not settled:
            u = torch.rand(
                log_alpha.shape, generator=self._scope.generator, device=log_alpha.device
            ).clamp(1e-6, 1 - 1e-6)
            logit = (u.log() - (1 - u).log() + log_alpha) / BETA
        z = (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0, 1)
        return active(log_alpha).detach(), z
