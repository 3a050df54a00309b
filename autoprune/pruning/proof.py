"""Proving a traced group on the model itself: cut it, zero it, compare."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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

    Where a normalisation runs over the channels themselves (LayerNorm, GroupNorm of one group), the
    copy normalises over those that stay: what the cut model must do.
    """
    staying = range(0, group.channels, 2)
    alone = Grouping(groups=(group,), blocked=(), shapes={}, positions={})
    try:
        smaller = _outputs(cut(model, alone, {group.name: list(staying)}), probe)
        dense = _outputs(_deafened(model, group, range(1, group.channels, 2)), probe)
    except Exception as error:
        raise UnprunableError(
            f"the model does not run without them ({first_line(error)})"
        ) from error
    if [t.shape for t in smaller] != [t.shape for t in dense]:
        raise UnprunableError("its outputs are the model's outputs")
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
    _renormalise(deaf, group, channels)
    return deaf


class _KeptNorm(nn.Module):
    """LayerNorm or GroupNorm(1) over some of its channels; the others come out as zero."""

    def __init__(self, norm: nn.LayerNorm | nn.GroupNorm, kept: Tensor) -> None:
        super().__init__()
        self._norm = norm
        self._kept = kept

    def forward(self, x: Tensor) -> Tensor:
        norm, kept = self._norm, self._kept
        weight = None if norm.weight is None else norm.weight[kept]
        bias = None if norm.bias is None else norm.bias[kept]
        dim = -1 if isinstance(norm, nn.LayerNorm) else 1
        part = x.index_select(dim, kept)
        if isinstance(norm, nn.LayerNorm):
            part = F.layer_norm(part, (len(kept),), weight, bias, norm.eps)
        else:
            part = F.group_norm(part, 1, weight, bias, norm.eps)
        return torch.zeros_like(x).index_copy(dim, kept, part)


def _renormalise(deaf: nn.Module, group: ChannelGroup, channels: Sequence[int]) -> None:
    """Make the norms that run over the group's channels ignore `channels`, in place."""
    for piece in group.slices:
        name, _, tensor = piece.tensor.rpartition(".")
        norm = deaf.get_submodule(name)
        over_channels = isinstance(norm, nn.LayerNorm) or (
            isinstance(norm, nn.GroupNorm) and norm.num_groups == 1
        )
        if tensor == "weight" and over_channels:
            assert isinstance(norm, (nn.LayerNorm, nn.GroupNorm))
            stays = torch.ones(norm.weight.shape[0], dtype=torch.bool)
            stays[torch.from_numpy(piece.entries(channels))] = False
            deaf.set_submodule(name, _KeptNorm(norm, stays.nonzero()[:, 0]))
