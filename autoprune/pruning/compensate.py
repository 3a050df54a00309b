"""Bias compensation: what the removed channels gave on average goes into their readers' biases."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from autoprune.pruning.forward import shared_names
from autoprune.pruning.groups import Grouping, Kept, Slice, removed_entries
from autoprune.pruning.readers import reading_layers


def compensated(
    model: nn.Module, grouping: Grouping, kept: Kept, means: Mapping[str, Tensor]
) -> nn.Module:
    """Return a copy of `model`, not cut yet, whose biases make up for what `kept` leaves out.

    An et al. 2024 (FLAP), eq. 4: a reader's bias gains W x mean over its removed inputs. Only
    biases that are there are changed, and none that several layers share. A convolution adds the
    mean over positions as if there were no border.

    Parameters
    ----------
    means
        By weight of a reader, the mean of each entry of its inputs; readers without are left.

    Examples
    --------
    >>> import numpy as np
    >>> from autoprune.pruning.graph import find_groups
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> grouping = find_groups(model, torch.zeros(1, 1))
    >>> means = {"2.weight": torch.tensor([0.0, 3.0])}
    >>> new = compensated(model, grouping, {"0": [0]}, means)[2].bias
    >>> bool(torch.isclose(new, model[2].bias + 3 * model[2].weight[0, 1]))
    True
    """
    model = copy.deepcopy(model)
    gone = removed_entries(grouping, kept)
    ties = shared_names(model)
    tied = {*ties, *ties.values()}
    names = {id(module): name for name, module in model.named_modules()}
    pieces = {(s.tensor, s.dim): s for g in grouping.groups for s in g.slices if s.role == "in"}
    for piece in pieces.values():
        removed = gone.get((piece.tensor, piece.dim))
        if removed is None or piece.tensor not in means:
            continue
        for layer in reading_layers(model, piece):
            bias = layer.bias
            if isinstance(bias, nn.Parameter) and f"{names[id(layer)]}.bias" not in tied:
                index = torch.from_numpy(removed)
                with torch.no_grad():
                    bias.add_(_mean_part(layer, piece, index, means[piece.tensor]))
    return model


def _mean_part(layer: nn.Module, piece: Slice, removed: Tensor, means: Tensor) -> Tensor:
    """Return what the removed inputs add to each output on average, [outputs]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    index = removed.to(weight.device)
    columns = weight.index_select(piece.dim, index).movedim(piece.dim, 0)
    taps = columns.reshape(len(index), columns.shape[1], -1).sum(2)
    if isinstance(layer, _ConvTransposeNd):
        # Each output position is reached by one in `stride` of the kernel's taps.
        taps = taps / math.prod(layer.stride)
    given = means.to(weight.device, weight.dtype)[index]
    return given @ taps
