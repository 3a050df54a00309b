"""What a plan costs, exactly, from its widths alone: no model is built to know it.

Every tensor dimension is linear in the widths of the groups that run through it, so a parameter's
size is a product of linear functions: a constant factor, times one for each dimension that groups
run through. Tensors with the same functions are counted together, so that a network of hundreds
of tensors is a sum of few products, and thousands of plans are costed in one sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.pruning.forward import batch_size_of, call, tensors_of
from autoprune.pruning.groups import Grouping

Widths = npt.NDArray[np.int64]


class CostModel:
    """Parameters and multiply-accumulates as a function of the widths.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from autoprune.pruning.graph import find_groups
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> cost = CostModel(find_groups(model, torch.zeros(1, 4)))
    >>> cost.params({"0": 8}), cost.params({"0": 3})
    (58, 23)
    """

    def __init__(self, grouping: Grouping) -> None:
        self.names = [g.name for g in grouping.groups]
        self.channels: Widths = np.array([g.channels for g in grouping.groups], dtype=np.int64)
        entries = _entries_per_channel(grouping)
        forms: dict[tuple[int, ...], int] = {}  # (extent, entries per channel of each group)
        products: dict[tuple[int, ...], list[int]] = {}  # forms -> [parameters, MACs] per entry
        for name, shape in grouping.shapes.items():
            factor, through = 1, []
            for dim, extent in enumerate(shape):
                per_group = entries.get((name, dim))
                if per_group is None:
                    factor *= extent
                else:
                    through.append(forms.setdefault((extent, *per_group), len(forms)))
            totals = products.setdefault(tuple(sorted(through)), [0, 0])
            totals[0] += factor
            totals[1] += factor * grouping.positions.get(name, 0)
        self._products = list(products.items())
        table = np.array(list(forms), dtype=np.int64).reshape(len(forms), 1 + len(self.names))
        self._extents: Widths = table[:, 0]
        # Whole numbers far below 2^53, so that the fast product of floats is exact.
        self._per_channel = table[:, 1:].T.astype(np.float64)

    def row(self, widths: Mapping[str, int]) -> Widths:
        """Return `widths` as a row in group order."""
        return np.array([widths[name] for name in self.names], dtype=np.int64)

    def params(self, widths: Mapping[str, int]) -> int:
        """Count the parameters of the model cut to `widths`."""
        return int(self.params_of(self.row(widths)[None])[0])

    def macs(self, widths: Mapping[str, int]) -> int:
        """Count its multiply-accumulates per sample, in convolutions and linear layers."""
        return int(self.macs_of(self.row(widths)[None])[0])

    def params_of(self, rows: Widths) -> Widths:
        """Count parameters for many plans: `rows` is [plans, groups], the result [plans]."""
        return self._sum(rows, 0)

    def macs_of(self, rows: Widths) -> Widths:
        """Count multiply-accumulates for many plans: `rows` is [plans, groups]."""
        return self._sum(rows, 1)

    def _sum(self, rows: Widths, kind: int) -> Widths:
        removed = (self.channels - rows).astype(np.float64) @ self._per_channel
        sizes = self._extents[:, None] - removed.T.astype(np.int64)
        total = np.zeros(len(rows), dtype=np.int64)
        for through, totals in self._products:
            if totals[kind]:
                total += totals[kind] * sizes[list(through)].prod(0)
        return total


def _entries_per_channel(grouping: Grouping) -> dict[tuple[str, int], list[int]]:
    """Return, by (tensor, dim), how many entries one channel of each group has there."""
    entries: dict[tuple[str, int], list[int]] = {}
    for column, group in enumerate(grouping.groups):
        for piece in group.slices:
            per_group = entries.setdefault((piece.tensor, piece.dim), [0] * len(grouping.groups))
            per_group[column] += piece.index.shape[1]
    return entries


def weight_positions(model: nn.Module, example: Any) -> dict[str, int]:
    """Count, per sample, how often each weight of a convolution or linear layer is multiplied.

    `model` is run once on `example` in its current mode, without gradients.
    """
    counts: dict[str, int] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    samples = batch_size_of(example)

    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = (args, kwargs)
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Linear):
            times = tensors_of(inputs)[0].numel() // weight.shape[1]
        else:
            place = tensors_of(inputs if isinstance(module, _ConvTransposeNd) else output)[0]
            spatial = weight.dim() - 2
            batch = place.shape[0] if place.dim() == spatial + 2 else 1
            times = batch * int(np.prod(place.shape[place.dim() - spatial :]))
        name = names[id(weight)]
        counts[name] = counts.get(name, 0) + times

    hooks = [
        module.register_forward_hook(count, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and id(module.weight) in names
    ]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: times // samples for name, times in counts.items()}
