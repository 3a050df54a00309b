"""Sparsifiers that shrink weights after each step: proximal operators and decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoprune.training.regularise import Part, Regulariser, Scope, joint_norm, scale


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """Return sign(w) max(|w| - t, 0), the proximal operator of t |w|."""
    return weight.sign() * (weight.abs() - threshold).clamp_min(0)


def group_shrinkage(norms: Tensor, threshold: Tensor | float) -> Tensor:
    """Return max(1 - t / ||w_c||, 0) for each channel: the proximal operator of t ||w_c||."""
    return (1 - threshold / norms.clamp_min(1e-12)).clamp_min(0)


EMPHASIS = 4.0


def emphasis(norms: Tensor) -> Tensor:
    """Fang et al. 2023 (DepGraph), eq. 4: how much of a penalty each channel gets, by its norm.

    2^(alpha (max - norm) / (max - min)), alpha = 4, here divided by its largest value: 1 for the
    weakest channel, 1/16 for the strongest. BatchNorm makes a network indifferent to the size of
    its kernels, so one penalty for all would take all of them to zero at the same time.
    """
    spread = (norms.max() - norms.min()).clamp_min(1e-12)
    return 2 ** (EMPHASIS * ((norms.max() - norms) / spread - 1))


def typical(parts: Sequence[Part]) -> Tensor:
    """Return the root mean square of all the channels' entries in `parts`, a number."""
    squares = torch.stack([part.squares().sum() for part in parts]).sum()
    return (squares / sum(part.index.shape[0] * part.numel() for part in parts)).sqrt()


L1_REACH = 6.0


class Proximal(Regulariser):
    """A regulariser whose thresholds are fixed when training begins."""

    def state(self) -> dict[str, Tensor]:
        return {}


class L1(Proximal):
    """Proximal L1 (Tibshirani 1996; for networks Han et al. 2015, Li et al. 2017).

    w <- sign(w) max(|w| - lr lambda_c, 0) after each step, for each weight that produces channel
    c, rides on it or reads it, lambda_c by the channel's `emphasis`. Usual strength (calibrated on
    digits' validation split): over the whole training, the weakest channel's thresholds add up to
    6 times its tensor's root mean square, the strongest one's to 0.4 times.
    """

    def __init__(self, scope: Scope) -> None:
        self._limits: list[tuple[nn.Parameter, Tensor]] = []
        for group in scope.groups:
            share = emphasis(joint_norm(group.weights))
            for part in group.parts:
                rate = L1_REACH * scope.strength * typical([part]) / scope.total_lr
                self._limits.append((part.parameter, part.spread(rate * share, rest=0.0)))

    def after_step(self, lr: float) -> None:
        for parameter, limit in self._limits:
            parameter.copy_(soft_threshold(parameter, lr * limit))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shrunk:
    """Channels whose `parts` shrink together, by the norm of what is `measured`."""

    measured: tuple[Part, ...]
    parts: tuple[Part, ...]
    rate: Tensor
    """By channel, lambda_c sqrt(n)."""

    def shrink(self, lr: float) -> None:
        scale(self.parts, group_shrinkage(joint_norm(self.measured), lr * self.rate))


def _shrunk(
    scope: Scope, measured: tuple[Part, ...], parts: tuple[Part, ...], *, reach: float
) -> _Shrunk:
    """Set the rates so that the weakest channel's thresholds add up to `reach` typical norms."""
    root = math.sqrt(sum(part.numel() for part in measured))
    rate = reach * scope.strength * typical(measured) * root / scope.total_lr
    return _Shrunk(measured=measured, parts=parts, rate=rate * emphasis(joint_norm(measured)))


LASSO_REACH = 6.0


class GroupLasso(Proximal):
    """Yuan & Lin 2006; Wen et al. 2016: proximal group lasso over a group's channels.

    w_c <- w_c max(1 - lr lambda_c sqrt(n) / ||w_c||, 0) after each step, w_c being all n numbers
    of the coupled layers that produce channel c (kernels, biases, norms' scales and shifts), or
    its readers where nothing produces it; lambda_c by the channel's `emphasis`. Usual strength
    (calibrated on digits' validation split): the weakest channel's thresholds add up to 6 times
    the typical norm, the strongest one's to 0.4 times.
    """

    def __init__(self, scope: Scope) -> None:
        vectors = [group.producers or group.readers for group in scope.groups]
        self._groups = [_shrunk(scope, parts, parts, reach=LASSO_REACH) for parts in vectors]

    def after_step(self, lr: float) -> None:
        for group in self._groups:
            group.shrink(lr)


GAMMA_REACH = 5.0


class BatchNormL1(Proximal):
    """Liu et al. 2017 (network slimming): L1 on BatchNorm's gammas, as a proximal step.

    gamma_c <- gamma_c max(1 - lr lambda_c / |gamma_c|, 0), jointly over coupled norms. What else
    produces the channel shrinks by the same factor: beta, or a channel at gamma = 0 would still
    pass a constant, and the kernels, which BatchNorm makes free of scale, so that every criterion
    sees what gamma says. Groups without BatchNorm get `group_lasso`. lambda_c is by the channel's
    `emphasis`; usual strength (calibrated on digits' validation split): 5 times the typical gamma
    in all for the weakest channel, 0.3 times for the strongest.
    """

    def __init__(self, scope: Scope) -> None:
        self._groups = []
        for group in scope.groups:
            parts = group.producers or group.readers
            reach = GAMMA_REACH if group.gammas else LASSO_REACH
            self._groups.append(_shrunk(scope, group.gammas or parts, parts, reach=reach))

    def after_step(self, lr: float) -> None:
        for group in self._groups:
            group.shrink(lr)


DECAY = 7.0


class GrowingL2(Regulariser):
    """Wang et al. 2021 (GReg-1): an L2 penalty on the doomed channels that grows at every step.

    w <- w (1 - lr lambda_t) for all that produces or reads a doomed channel, lambda_t = t delta,
    as decoupled decay; the other channels get none. Usual strength: delta such that the decay adds
    up to exp(-7) = 0.001 of a weight, half of it in the last third of the steps.
    """

    def __init__(self, scope: Scope) -> None:
        self._step = 0
        self._delta = 2 * DECAY * scope.strength / (scope.total_lr * scope.steps)
        self._masks = [(group, group.full(0.0)) for group in scope.groups]
        for group, mask in self._masks:
            mask[list(group.doomed)] = 1.0

    def after_step(self, lr: float) -> None:
        self._step += 1
        for group, mask in self._masks:
            scale(group.parts, 1 - mask * min(lr * self._delta * self._step, 1.0))

    def state(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self._step)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._step = int(state["step"])
