"""Proving groups on the model itself: cut them, ignore them, compare."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import first_line
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import call, tensors_of, without_fast_path
from autoprune.pruning.groups import ChannelGroup, Grouping, Kept
from autoprune.pruning.layers import fit_attributes, over_channels, skip

RELATIVE_TOLERANCE = 1e-4


def prove(
    model: nn.Module, groups: Sequence[ChannelGroup], grouping: Grouping, probe: Any
) -> dict[str, str]:
    """Return, by name, what is wrong with groups that cannot be cut; those that can are left out.

    Every second channel of every group is cut, then an uneven lot of them, and the outputs are
    compared with those of a copy whose readers ignore the same channels. Where a normalisation runs
    over the channels themselves (LayerNorm, RMSNorm, GroupNorm of one group), that copy normalises
    over those that stay: what the cut model must do. Groups are tried together, and halved where
    that fails.
    """
    fault = _fault(model, groups, grouping, probe) if groups else None
    if fault is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: fault}
    middle = len(groups) // 2
    return prove(model, groups[:middle], grouping, probe) | prove(
        model, groups[middle:], grouping, probe
    )


def _fault(
    model: nn.Module, groups: Sequence[ChannelGroup], grouping: Grouping, probe: Any
) -> str | None:
    alone = Grouping(
        groups=tuple(groups), blocked=(), shapes=grouping.shapes, positions={}, products=()
    )
    halves = {g.name: list(range(0, g.channels, 2)) for g in groups}
    return _fault_of(model, alone, halves, probe) or _fault_of(
        model, alone, {g.name: _uneven(g.channels) for g in groups}, probe
    )


def _uneven(channels: int) -> list[int]:
    """Return some channels in no regular order: most of the first half, few of the second."""
    kept = [c for c in range(channels) if c % 7 != 2 and (c < channels // 2 or c % 3 == 1)]
    return kept or [channels - 1]


def _fault_of(model: nn.Module, alone: Grouping, kept: Kept, probe: Any) -> str | None:
    gone = {g.name: sorted(set(range(g.channels)) - set(kept[g.name])) for g in alone.groups}
    try:
        smaller = _outputs(cut(model, alone, kept), probe)
        dense = _outputs(deafened(model, alone, gone), probe)
    except Exception as error:
        return f"the model does not run without them ({first_line(error)})"
    if [t.shape for t in smaller] != [t.shape for t in dense]:
        return "its outputs are the model's outputs"
    for small, large in zip(smaller, dense, strict=True):
        scale = max(float(large.abs().max()), 1.0) if large.numel() else 1.0
        if not torch.allclose(small, large, rtol=0, atol=RELATIVE_TOLERANCE * scale):
            return (
                "an operation mixes its channels (softmax, mean or reshape across them), "
                "so that cutting is not the same as ignoring them"
            )
    return None


def droppable(model: nn.Module, blocks: Sequence[str], probe: Any) -> list[str]:
    """Return the blocks without which the model runs and answers in the same shape."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shapes = [t.shape for t in _outputs(model, probe)]
    found = []
    for block in blocks:
        without = copy.deepcopy(model, dict(held))  # shares its tensors
        skip(without.get_submodule(block))
        try:
            if [t.shape for t in _outputs(without, probe)] == shapes:
                found.append(block)
        except Exception:  # whatever asks for the block: it stays
            continue
    return found


def _outputs(model: nn.Module, probe: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), without_fast_path():
        torch.manual_seed(0)
        return [t.float() for t in tensors_of(call(model, probe))]


def deafened(model: nn.Module, grouping: Grouping, gone: Kept) -> nn.Module:
    """Copy `model` with the weights that read the channels that are `gone` set to zero."""
    deaf = copy.deepcopy(model)
    tensors = dict(deaf.named_parameters())
    norms: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for group in grouping.groups:
            for piece in group.slices:
                index = torch.from_numpy(piece.entries(gone[group.name]))
                if piece.role == "in":
                    tensors[piece.tensor].index_fill_(piece.dim, index, 0.0)
                path, _, attribute = piece.tensor.rpartition(".")
                if attribute == "weight" and over_channels(deaf.get_submodule(path)):
                    norms.setdefault(path, []).append(index)
    for path, indices in norms.items():
        deaf.set_submodule(path, _KeptNorm(deaf.get_submodule(path), torch.cat(indices)))
    return deaf


class _KeptNorm(nn.Module):
    """A norm over some of its channels; the others come out as zero."""

    def __init__(self, norm: nn.Module, gone: Tensor) -> None:
        super().__init__()
        weight = norm.get_parameter("weight")
        stays = torch.ones(weight.shape[0], dtype=torch.bool)
        stays[gone] = False
        self._kept = stays.nonzero()[:, 0]
        self._dim = 1 if isinstance(norm, nn.GroupNorm) else -1
        self._norm = copy.deepcopy(norm)
        for name, parameter in norm.named_parameters(recurse=False):
            setattr(self._norm, name, nn.Parameter(parameter.detach()[self._kept]))
        fit_attributes(self._norm)

    def forward(self, x: Tensor) -> Tensor:
        part = self._norm(x.index_select(self._dim, self._kept))
        return torch.zeros_like(x).index_copy(self._dim, self._kept, part)
