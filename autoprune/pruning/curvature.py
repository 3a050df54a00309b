"""The diagonal of a loss's Hessian, estimated by probes: what Optimal Brain Damage asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PROBES = 8
"""Probes for each calibration batch."""


def hessian_diagonal(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    seed: int,
    probes: int = PROBES,
) -> dict[str, Tensor]:
    """Estimate the diagonal of the Hessian of the mean loss, by parameter.

    Hutchinson's estimate (Bekas et al. 2007): the mean of z x Hz over random signs z is diag(H).
    H is the true Hessian, by differentiating twice; each batch gets `probes` probes of its own.

    Parameters
    ----------
    parameters
        The parameters that are asked about, by name: a part of those of `model`. All gradients of
        `model` are cleared.

    Returns
    -------
    The estimate, or nothing at all if some operation of the model cannot be differentiated twice.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    # The fused attention kernels cannot be differentiated twice, nor can cuDNN's recurrent ones.
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        for batch in batches:
            value = loss(model, batch)
            try:
                sums = _probe(value, model, parameters, generator, probes)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                return {}
            for name, total in sums.items():
                totals[name] += total
            count += probes
    return {name: (total / max(count, 1)).detach() for name, total in totals.items()}


def random_signs(parameters: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a probe: +1 or -1 for every entry, the same on every device."""
    return {
        name: (2 * torch.randint(2, p.shape, generator=generator) - 1).to(p)
        for name, p in parameters.items()
    }


def _probe(
    value: Tensor,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    generator: torch.Generator,
    probes: int,
) -> dict[str, Tensor]:
    """Return, by parameter, the sum of z x Hz over `probes` probes."""
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    slopes = torch.autograd.grad(
        value, list(parameters.values()), create_graph=True, allow_unused=True
    )
    # A slope that depends on nothing has no curvature.
    bent = [i for i, slope in enumerate(slopes) if slope is not None and slope.requires_grad]
    for number in range(probes):
        signs = random_signs(parameters, generator)
        drawn = list(signs.values())
        if not bent:
            continue
        model.zero_grad(set_to_none=True)
        # Not `grad` for these parameters alone: it would pass by operations that can be
        # differentiated only once, instead of raising their error.
        torch.autograd.backward(
            [slopes[i] for i in bent],
            [drawn[i] for i in bent],
            retain_graph=number + 1 < probes,
        )
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                totals[name] += signs[name] * parameter.grad
    model.zero_grad(set_to_none=True)
    return totals
