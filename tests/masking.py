"""What a cut model must answer: the dense model with its removed channels ignored.

Knows nothing of how autoprune cuts or proves; it reads only the slices of a grouping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.pruning.groups import ChannelGroup, Grouping, Slice

Kept = Mapping[str, Sequence[int]]
Norm = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


def masked(
    model: nn.Module, grouping: Grouping, kept: Kept, *, tied: Sequence[str] = ()
) -> nn.Module:
    """Copy the dense `model` with every weight that reads a removed channel set to zero.

    Norms that run over channels take their statistics over those that stay. A parameter in `tied`
    reads channels through the dimension that produces them, so its entries go whatever their role.
    """
    copied = copy.deepcopy(model)
    parameters = dict(copied.named_parameters())
    staying: dict[str, Tensor] = {}
    for group in grouping.groups:
        for piece in group.slices:
            entries = _removed(group, piece, kept[group.name])
            if piece.role == "in" or piece.tensor in tied:
                with torch.no_grad():
                    parameters[piece.tensor].index_fill_(piece.dim, entries, 0.0)
            if piece.role == "out" and piece.tensor in parameters:
                stays = staying.setdefault(
                    piece.tensor,
                    torch.ones(parameters[piece.tensor].shape[piece.dim], dtype=torch.bool),
                )
                stays[entries] = False
    for name, module in copied.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
            stays = staying.get(f"{name}.weight", torch.ones(1, dtype=torch.bool))
            if not bool(stays.all()):
                module.forward = _over(module, stays)
    return copied


def _removed(group: ChannelGroup, piece: Slice, kept: Sequence[int]) -> Tensor:
    channels = sorted(set(range(group.channels)) - set(kept))
    return torch.from_numpy(piece.index[channels].reshape(-1))


def _over(norm: Norm, stays: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what `norm` does if there are only the channels in `stays`; the others give zero."""
    dim = 1 if isinstance(norm, nn.GroupNorm) else -1
    parts = stays.chunk(norm.num_groups) if isinstance(norm, nn.GroupNorm) else [stays]
    offset, places = 0, []
    for part in parts:
        places.append(offset + part.nonzero()[:, 0])
        offset += len(part)

    def forward(x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for place in places:
            if len(place):
                y = _normalised(norm, x.index_select(dim, place), place)
                result = result.index_copy(dim, place, y)
        return result

    return forward


def _normalised(norm: Norm, x: Tensor, place: Tensor) -> Tensor:
    weight = None if norm.weight is None else norm.weight[place]
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(x, (len(place),), weight, norm.eps)
    bias = None if norm.bias is None else norm.bias[place]
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(x, 1, weight, bias, norm.eps)
    return F.layer_norm(x, (len(place),), weight, bias, norm.eps)
