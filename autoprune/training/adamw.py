"""AdamW by torch's fused kernel, without what `torch.optim` brings along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8
"""torch's own."""


class FusedAdamW:
    """AdamW (Loshchilov & Hutter 2019), bit for bit as ``torch.optim.AdamW(..., fused=True)``.

    It is torch's kernel, called straight. `torch.optim` imports the compiler at the first use of
    any optimiser, 0.9 s and 70 MB in each process, and goes through all parameters in Python twice
    a step. `state` and `param_groups` are as an optimiser of torch's has them.

    Parameters
    ----------
    groups
        Parameter groups: `params`, and optionally `lr` and `weight_decay` of their own.
    lr, weight_decay
        Of the groups that have none. A group's `lr` may be changed at any time.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = FusedAdamW([{"params": [weight]}], lr=0.1)
    >>> weight.square().sum().backward()
    >>> optimizer.step()
    >>> round(weight.item(), 3)  # decayed by 0.1 %, then moved by the learning rate
    0.899
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, lr: float, weight_decay: float = 0.01
    ) -> None:
        usual = {"lr": lr, "weight_decay": weight_decay}
        self.param_groups = [{**usual, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Change all parameters that have a gradient."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for _, alike in groupby(trained, key=lambda p: (p.device, p.dtype)):
                self._step(list(alike), group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
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

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.param_groups for p in group["params"])
