"""The optimisers of fine-tuning: torch's fused AdamW, without `torch.optim`, and Muon."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.training.device import autocast

BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW's; torch's own."""
MOMENTUM = 0.85
"""Lower than for long training (0.95): a pruned model is trained for few steps."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024)."""
ITERATIONS = 4
UPDATE_RMS = 0.6
"""Root mean square of Muon's update at a learning rate of 1, where a square matrix has full rank.
AdamW's is about half of it, and Muon bears twice as much: so learning rates that suit one suit the
other."""


class _Plain(ABC):
    """An optimiser with the parts of torch's that training uses, and no import of the compiler.

    `torch.optim` imports it at the first use of any optimiser: 0.9 s and 70 MB in each process.

    Parameters
    ----------
    groups
        Parameter groups: `params`, and optionally `lr` and `weight_decay` of their own.
    lr, weight_decay
        Of the groups that have none. A group's `lr` may be changed at any time.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, lr: float, weight_decay: float = 0.01
    ) -> None:
        usual = {"lr": lr, "weight_decay": weight_decay}
        self.param_groups = [{**usual, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Change all parameters that have a gradient."""
        for group in self.param_groups:
            self._step([p for p in group["params"] if p.grad is not None], group)

    @abstractmethod
    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Change a group's parameters, all of which have a gradient."""


class FusedAdamW(_Plain):
    """AdamW (Loshchilov & Hutter 2019), bit for bit as ``torch.optim.AdamW(..., fused=True)``.

    It is torch's kernel, called straight; torch's way to it goes through all parameters in Python
    twice a step.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = FusedAdamW([{"params": [weight]}], lr=0.1)
    >>> weight.square().sum().backward()
    >>> optimizer.step()
    >>> round(weight.item(), 3)  # decayed by 0.1 %, then moved by the learning rate
    0.899
    """

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for _, alike in groupby(parameters, key=lambda p: (p.device, p.dtype)):
            self._step_alike(list(alike), group)

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Change parameters of one device and type."""
        states = [self.state.get(p) or self._begun(p) for p in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=group["weight_decay"],
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )

    def _begun(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        self.state[parameter] = state
        return state


class Muon(_Plain):
    """Momentum, made orthogonal (Jordan et al. 2024): all directions of a matrix learn alike.

    A kernel [out, in, ...] is taken as the matrix [out, in * ...]. An update's size is that of
    AdamW (Liu et al. 2025), a tall matrix's larger by the root of its sides' ratio (Jordan).
    torch's own takes matrices alone.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(4, 2, 3, 3))
    >>> optimizer = Muon([{"params": [weight]}], lr=0.1)
    >>> (weight * torch.randn(4, 2, 3, 3)).sum().backward()
    >>> optimizer.step()
    >>> update = weight.detach().flatten(1)
    >>> torch.linalg.svdvals(update / update.norm()).min() > 0.3  # all four directions
    tensor(True)
    """

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, decay = group["lr"], group["weight_decay"]
        for parameter in parameters:
            assert parameter.grad is not None
            momentum = self._momentum(parameter).lerp_(parameter.grad, 1 - MOMENTUM)
            update = orthogonal(torch.lerp(parameter.grad, momentum, MOMENTUM).flatten(1))
            rows, columns = update.shape
            size = UPDATE_RMS * math.sqrt(max(rows, columns) * max(1, rows / columns))
            parameter.mul_(1 - lr * decay).add_(update.reshape(parameter.shape), alpha=-lr * size)

    def _momentum(self, parameter: Tensor) -> Tensor:
        if parameter not in self.state:
            self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        return self.state[parameter]["momentum_buffer"]


def orthogonal(matrix: Tensor) -> Tensor:
    """Return `matrix` with all of its singular values brought near 1, by Newton and Schulz.

    They come to lie between 0.7 and 1.2, but for those that were next to nothing. Zero stays zero.
    Mixed precision is enough (Jordan et al. 2024): it is that of training.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + EPS)
    with autocast(matrix.device):
        for _ in range(ITERATIONS):
            square = wide @ wide.T
            polynomial = torch.addmm(square, square, square, beta=b, alpha=c)
            wide = torch.addmm(wide, polynomial, wide, beta=a)
    found = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    return found.to(matrix.dtype)


def muons_share(model: nn.Module, *, macs: int, batch_size: int) -> float:
    """Return how much arithmetic Muon adds to a training step, as a share of the step's own.

    Parameters
    ----------
    macs
        The model's multiply-accumulates for one sample. Training takes three times as many.

    Examples
    --------
    >>> wide = torch.nn.Linear(1024, 1024)
    >>> round(muons_share(wide, macs=1024**2, batch_size=64))
    64
    >>> round(muons_share(wide, macs=196 * 1024**2, batch_size=64), 2)  # on 196 tokens
    0.33
    """
    sides = [sorted((w.shape[0], w[0].numel())) for w in matrices(model)]
    own = ITERATIONS * sum(2 * low**2 * high + low**3 for low, high in sides)
    return own / (3 * batch_size * max(macs, 1))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that Muon is for: of linear layers and convolutions that mix channels.

    What is shared with an embedding is no such weight, nor is one with a single input.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [m for m in model.modules() if isinstance(m, kinds) and getattr(m, "groups", 1) == 1]
    # Its own parameter: one that a parametrization computes is no parameter.
    own = [dict(layer.named_parameters(recurse=False)).get("weight") for layer in layers]
    found = {id(w): w for w in own if w is not None and w.requires_grad and id(w) not in tables}
    return [weight for weight in found.values() if weight[0].numel() > 1]
