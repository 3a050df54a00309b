"""Proving a traced group on the model itself: cut it, zero it, compare."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import first_line
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import call, tensors_of
from autoprune.pruning.groups import ChannelGroup, Grouping

RELATIVE_TOLERANCE = 1e-4


class UnprunableError(Exception):
    """A traced group cannot be used; the message is the reason that users read."""


def prove(model: nn.Module, group: ChannelGroup, probe: Any) -> None:
    """Cut every second channel of `group` and compare with a copy whose readers ignore them.

    Only where a normalisation over the channels themselves (LayerNorm, GroupNorm) must change its
    statistics are the outputs compared by shape alone.
    """
    staying = range(0, group.channels, 2)
    alone = Grouping(groups=(group,), blocked=(), shapes={}, positions={})
    try:
        smaller = _outputs(cut(model, alone, {group.name: list(staying)}), probe)
    except Exception as error:
        raise UnprunableError(
            f"the model does not run without them ({first_line(error)})"
        ) from error
    dense = _outputs(_deafened(model, group, range(1, group.channels, 2)), probe)
    if [t.shape for t in smaller] != [t.shape for t in dense]:
        raise UnprunableError("its outputs are the model's outputs")
    if _renormalises(model, group):
        return
    for small, large in zip(smaller, dense, strict=True):
        scale = max(float(large.abs().max()), 1.0) if large.numel() else 1.0
        if not torch.allclose(small, large, rtol=0, atol=RELATIVE_TOLERANCE * scale):
            raise UnprunableError(
                "an operation mixes its channels (softmax, mean or reshape across them), "
                "so that cutting is not the same as ignoring them"
            )


def _outputs(model: nn.Module, probe: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [t.float() for t in tensors_of(call(model, probe))]


def _deafened(model: nn.Module, group: ChannelGroup, channels: Sequence[int]) -> nn.Module:
    """Copy `model` with the weights that read `channels` set to zero."""
    deaf = copy.deepcopy(model)
    tensors = dict(deaf.named_parameters())
    with torch.no_grad():
        for piece in group.slices:
            if piece.role == "in":
                index = torch.from_numpy(piece.entries(channels))
                tensors[piece.tensor].index_fill_(piece.dim, index, 0.0)
    return deaf


def _renormalises(model: nn.Module, group: ChannelGroup) -> bool:
    owners = {piece.tensor.rpartition(".")[0] for piece in group.slices}
    layers = [m for name, m in model.named_modules() if name in owners]
    return any(
        isinstance(m, nn.LayerNorm) or (isinstance(m, nn.GroupNorm) and m.num_groups == 1)
        for m in layers
    )
