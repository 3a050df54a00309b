"""Sparsifiers that train a model with its channels multiplied by gates or noise.

A gate on the weights that read a channel is a gate on the channel, whatever lies between. The
kernels get a smooth factor of their own, so that criteria that look at them rank the channels as
their gates do; training goes on under both, so that what is left in the end is what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.training.regularise import Channels, Regulariser, Scope, joint_norm

Factors = tuple[Tensor | None, Tensor | None]
"""Of one group: what the weights that produce its channels, and those that read them, are
multiplied by, each [channels]; None leaves them."""


class Gated(Regulariser):
    """A regulariser that trains the model with its channels multiplied by factors.

    Before each step the products take the parameters' places, as values in the very same tensors,
    and after the backward pass the chain rule brings their gradients back to the parameters and to
    whatever the factors were made of. So there is nothing in the model that a layer could notice:
    tied, recurrent and attention weights work as they are.
    """

    def __init__(self, groups: Sequence[Channels]) -> None:
        self.groups = groups
        self._shown: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}

    def factors(self, *, settled: bool) -> list[Factors]:
        """Return each group's factors: drawn anew for a step, or `settled` as they would stay."""
        raise NotImplementedError

    def before_step(self) -> None:
        self._show(settled=False)

    def after_backward(self) -> None:
        reached = [(s[1], p.grad) for p, s in self._shown.items() if p.grad is not None]
        if reached:
            torch.autograd.backward([p for p, _ in reached], [g for _, g in reached])
        for parameter, (own, _) in self._shown.items():
            parameter.grad = own.grad
        self._restore()

    @contextmanager
    def settled(self) -> Iterator[None]:
        self._show(settled=True)
        try:
            yield
        finally:
            self._restore()

    def finish(self) -> None:
        self._show(settled=True)
        self._shown.clear()

    def _show(self, *, settled: bool) -> None:
        with torch.enable_grad():
            products = self._products(self.factors(settled=settled))
        with torch.no_grad():
            for parameter, (_, product) in products.items():
                parameter.copy_(product)
        self._shown = products

    def _products(self, factors: Sequence[Factors]) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
        products: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        for group, (produce, read) in zip(self.groups, factors, strict=True):
            for parts, factor in ((group.kernels, produce), (group.readers, read)):
                if factor is None:
                    continue
                for part in parts:
                    if part.parameter not in products:
                        own = part.parameter.detach().clone().requires_grad_()
                        products[part.parameter] = (own, own)
                    own, product = products[part.parameter]
                    products[part.parameter] = (own, product * part.spread(factor))
        return products

    def _restore(self) -> None:
        with torch.no_grad():
            for parameter, (own, _) in self._shown.items():
                parameter.copy_(own)
        self._shown = {}


class Drawn(Gated):
    """Gates that are drawn anew for each step."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.groups)
        self._scope = scope
        self._step = 0

    def after_step(self, lr: float) -> None:
        self._step += 1

    def own(self) -> list[Tensor]:
        """Return the tensors that are trained along."""
        return [tensor for group in self.trained() for tensor in group["params"]]

    def state(self) -> dict[str, Tensor]:
        return {
            "step": torch.tensor(self._step),
            "random": self._scope.generator.get_state(),
            **{f"own.{number}": tensor for number, tensor in enumerate(self.own())},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._step = int(state["step"])
        self._scope.generator.set_state(state["random"])
        with torch.no_grad():
            for number, tensor in enumerate(self.own()):
                tensor.copy_(state[f"own.{number}"])


RAMP = 0.5
"""Share of the steps after which the dropout rate has its full height."""
LEFT = 1e-3
"""What is left of a channel that is dropped for good; not 0, so that it can still be trained."""


class Closed(Gated):
    """All channels are closed."""

    def factors(self, *, settled: bool) -> list[Factors]:
        return [(None, group.full(0.0)) for group in self.groups]


class TargetedDropout(Drawn):
    """Gomez et al. 2019: units among the lowest-|w| gamma-fraction drop with probability alpha.

    gamma is the plan's sparsity in each group, |w| the L2 norm of the kernels that produce the
    channel; alpha rises from 0 to its height in the first half of the steps. In the end the
    targeted channels are multiplied by their mean gate, 1 - alpha. Usual strength: alpha = 1.
    """

    def factors(self, *, settled: bool) -> list[Factors]:
        alpha = min(self._step / (RAMP * self._scope.steps), 1.0) * min(self._scope.strength, 1.0)
        return [self._of(group, alpha, settled=settled) for group in self.groups]

    def _of(self, group: Channels, alpha: float, *, settled: bool) -> Factors:
        factor = group.full(1.0)
        targeted = joint_norm(group.weights).argsort(stable=True)[: len(group.doomed)]
        if settled:
            factor[targeted] = max(1.0 - alpha, LEFT)
            return factor, factor
        draws = torch.rand(len(targeted), generator=self._scope.generator, device=targeted.device)
        factor[targeted] = (draws >= alpha).float()
        return None, factor


def kl_divergence(log_alpha: Tensor) -> Tensor:
    """Molchanov et al. 2017, eq. 14: KL(posterior, log-uniform prior), up to its constant."""
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    return k1 - k1 * torch.sigmoid(k2 + k3 * log_alpha) + 0.5 * F.softplus(-log_alpha)


KL_WEIGHT = 0.15
"""Per group, on the mean divergence of its channels, as a share of what is at stake."""
START_LOG_VARIANCE = -4.0
LIMIT_LOG_ALPHA = 3.0
"""Molchanov et al. 2017, sec. 5: what has a larger log alpha is left out."""
VARIANCE_TRAVEL, MEAN_TRAVEL = 16.0, 8.0
"""Learning rates of the posterior, as how far all steps together can take it."""


class VariationalDropout(Drawn):
    """Sparse variational dropout (Kingma et al. 2015; Molchanov et al. 2017) with noise by channel.

    A channel is multiplied by z ~ N(mu, sigma^2), alpha = sigma^2 / mu^2, as in Louizos et al.
    2017 (Bayesian compression), eq. 14; the loss is the task's plus KL, which rises to its weight
    in the first half of the steps. In the end a channel's readers get the posterior mean mu, or 0
    where log alpha > 3, its kernels the share of signal 1 / (1 + alpha). Usual strength (calibrated
    on digits' validation split): a weight of 0.15 times what is at stake on each group's mean KL.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._means = [group.full(1.0).requires_grad_() for group in scope.groups]
        self._variances = [
            group.full(START_LOG_VARIANCE).requires_grad_() for group in scope.groups
        ]

    def trained(self) -> list[dict[str, Any]]:
        steps = self._scope.steps
        return [
            _own(self._variances, travel=VARIANCE_TRAVEL, steps=steps),
            _own(self._means, travel=MEAN_TRAVEL, steps=steps),
        ]

    def penalty(self) -> Tensor:
        warm = min(self._step / (RAMP * self._scope.steps), 1.0)
        divergence = torch.stack([self._divergence(a) for a in self._log_alphas()]).sum()
        return KL_WEIGHT * self._scope.strength * self._scope.stake * warm * divergence

    def factors(self, *, settled: bool) -> list[Factors]:
        found: list[Factors] = []
        for mean, variance, log_alpha in zip(
            self._means, self._variances, self._log_alphas(), strict=True
        ):
            held = -_held_open(-log_alpha)
            signal = torch.sigmoid(-held).detach()
            if settled:
                found.append((signal, mean * (held <= LIMIT_LOG_ALPHA)))
            else:
                noise = torch.randn(mean.shape, generator=self._scope.generator, device=mean.device)
                found.append((signal, mean + (variance / 2).exp() * noise))
        return found

    @staticmethod
    def _divergence(log_alpha: Tensor) -> Tensor:
        """Return a group's mean; 0 once all its channels together have one channel's signal."""
        signal = torch.sigmoid(-log_alpha.detach()).sum()
        return kl_divergence(log_alpha).mean() * (signal >= 1.0)

    def _log_alphas(self) -> list[Tensor]:
        return [
            (variance - (mean.square() + 1e-8).log()).clamp(max=8.0)
            for mean, variance in zip(self._means, self._variances, strict=True)
        ]


TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Louizos et al. 2018, sec. 4: beta, gamma and zeta."""


def open_probability(log_alpha: Tensor) -> Tensor:
    """Louizos et al. 2018, eq. 12: the probability that a hard concrete gate is not zero."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Louizos et al. 2018, eq. 10 and 11: a gate in [0, 1] from a uniform draw in (0, 1)."""
    return _stretched((uniform.log() - (1 - uniform).log() + log_alpha) / TEMPERATURE)


def settled_gate(log_alpha: Tensor) -> Tensor:
    """Louizos et al. 2018, eq. 13: the gate without noise, as it is when training is over."""
    return _stretched(log_alpha)


def _stretched(logit: Tensor) -> Tensor:
    return (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0, 1)


L0_WEIGHT = 0.35
"""Per group, on the expected share of open gates, as a share of what is at stake."""
START_LOG_ALPHA = 0.0
"""Gates begin at 0.5, as in dropout with a rate of 0.5."""
GATE_TRAVEL = 24.0


class HardConcrete(Drawn):
    """Louizos et al. 2018: hard concrete gates on channels, and a penalty on how many are open.

    In the end a channel's readers get the gate without noise, its kernels the probability that it
    is open, which still tells closed ones apart. Usual strength (calibrated on digits' validation
    split): a weight of 0.35 times what is at stake on each group's expected share of open gates.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._log_alphas = [group.full(START_LOG_ALPHA).requires_grad_() for group in scope.groups]

    def trained(self) -> list[dict[str, Any]]:
        return [_own(self._log_alphas, travel=GATE_TRAVEL, steps=self._scope.steps)]

    def penalty(self) -> Tensor:
        shares = torch.stack([open_probability(a).mean() for a in self._log_alphas])
        return L0_WEIGHT * self._scope.strength * self._scope.stake * shares.sum()

    def factors(self, *, settled: bool) -> list[Factors]:
        return [self._gates(_held_open(a), settled=settled) for a in self._log_alphas]

    def _gates(self, log_alpha: Tensor, *, settled: bool) -> Factors:
        gate = (
            settled_gate(log_alpha) if settled else hard_concrete(log_alpha, self._draw(log_alpha))
        )
        return open_probability(log_alpha).detach(), gate

    def _draw(self, like: Tensor) -> Tensor:
        draws = torch.rand(like.shape, generator=self._scope.generator, device=like.device)
        return draws.clamp(1e-6, 1 - 1e-6)


def _held_open(log_alpha: Tensor) -> Tensor:
    """Keep a group's most open gate at least half open: without any, the network falls apart."""
    held = torch.zeros_like(log_alpha, dtype=torch.bool)
    held[log_alpha.argmax()] = True
    return torch.where(held, log_alpha.clamp_min(0.0), log_alpha)


def _own(parameters: list[Tensor], *, travel: float, steps: int) -> dict[str, Any]:
    """Return an optimiser's group for gates: all steps together can take them `travel` far."""
    return {"params": parameters, "lr": travel / steps, "weight_decay": 0.0}
