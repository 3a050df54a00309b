"""Re-estimating BatchNorm after a cut: without it, a cut model's score says nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.pruning.forward import call
from autoprune.training.device import device_of
from autoprune.training.distill import to_batch
from autoprune.training.task import Batch


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running statistics of every BatchNorm by averages over `batches`, in place.

    Dropout stays off. A model without BatchNorm is left as it is.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    device = device_of(model)
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, to_batch(batch, device).inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
