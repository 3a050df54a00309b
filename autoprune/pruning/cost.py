"""What a plan costs, exactly, from its widths alone: no model is built to know it.

Every tensor dimension is linear in the widths of the groups that run through it, so a parameter's
size is a product of linear functions, and thousands of plans are costed in one sweep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autoprune.pruning.groups import Activation, Grouping, Product, module_of

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
        self.names = list(grouping.channels)
        """Columns of a plan's row: the groups, then the blocks."""
        self.groups = [g.name for g in grouping.groups]
        self.channels: Widths = np.array(list(grouping.channels.values()), dtype=np.int64)
        weights = grouping.weights.values()
        self._shapes = {
            name: (math.prod(shape),) if name in weights else shape
            for name, shape in grouping.shapes.items()
        }
        self._positions = grouping.positions
        self._products = grouping.products
        self._activations = grouping.activations
        self._alive = _alive_together(grouping.activations)
        # (tensor, dim) -> how many entries one channel of each group has there
        self._entries: dict[tuple[str, int], Widths] = {}
        for column, group in enumerate(grouping.groups):
            for piece in group.slices:
                per_group = self._entries.setdefault(
                    (piece.tensor, piece.dim), np.zeros(len(self.names), dtype=np.int64)
                )
                per_group[column] += piece.index.shape[1]
            if group.name in grouping.weights:  # a channel is a single weight
                one = np.zeros(len(self.names), dtype=np.int64)
                one[column] = 1
                self._entries[(grouping.weights[group.name], 0)] = one
        self._inside = {
            name: [i for i, n in enumerate(self.names) if _is_inside(name, n, grouping)]
            for name in grouping.shapes
        }

    def row(self, widths: Mapping[str, int]) -> Widths:
        """Return `widths` as a row in group order."""
        return np.array([widths[name] for name in self.names], dtype=np.int64)

    def params(self, widths: Mapping[str, int]) -> int:
        """Count the parameters of the model cut to `widths`."""
        return int(self.params_of(self.row(widths)[None])[0])

    def macs(self, widths: Mapping[str, int]) -> int:
        """Count its multiply-accumulates per sample: convolutions and matrix products."""
        return int(self.macs_of(self.row(widths)[None])[0])

    def params_of(self, rows: Widths) -> Widths:
        """Count parameters for many plans: `rows` is [plans, groups], the result [plans]."""
        total = np.zeros(len(rows), dtype=np.int64)
        for name in self._shapes:
            total += self._numel(name, rows)
        return total

    def macs_of(self, rows: Widths) -> Widths:
        """Count multiply-accumulates for many plans: `rows` is [plans, groups]."""
        total = np.zeros(len(rows), dtype=np.int64)
        for name, positions in self._positions.items():
            total += positions * self._numel(name, rows)
        for product in self._products:
            total += self._value(product, rows)
        return total

    def memory(self, widths: Mapping[str, int]) -> int:
        """Return the peak memory of activations for one sample, in bytes: run layer by layer.

        Every tensor counts from when it is made until it was last needed, none of the model's
        parameters and none of its inputs.
        """
        return int(self.memory_of(self.row(widths)[None])[0])

    def memory_of(self, rows: Widths) -> Widths:
        """Return the peak activation memory of many plans: `rows` is [plans, groups]."""
        sizes = [self._value(a.product, rows) for a in self._activations]
        peak = np.zeros(len(rows), dtype=np.int64)
        for alive in self._alive:
            peak = np.maximum(peak, sum((sizes[i] for i in alive), np.zeros_like(peak)))
        return peak

    def _value(self, product: Product, rows: Widths) -> Widths:
        value = np.ones(len(rows), dtype=np.int64)
        for extent in product.extents:
            entries = np.array([extent.entries.get(n, 0) for n in self.names], dtype=np.int64)
            value *= extent.size - (self.channels - rows) @ entries
        return value * product.times.numerator // product.times.denominator

    def _numel(self, name: str, rows: Widths) -> Widths:
        size = np.ones(len(rows), dtype=np.int64)
        for dim, extent in enumerate(self._shapes[name]):
            entries = self._entries.get((name, dim))
            if entries is None:
                size *= extent
            else:
                size *= extent - (self.channels - rows) @ entries
        for column in self._inside[name]:
            size *= rows[:, column]  # 0 once its block is dropped
        return size


def _is_inside(tensor: str, name: str, grouping: Grouping) -> bool:
    return name in grouping.blocks and tensor.startswith(f"{module_of(name)}.")


def _alive_together(activations: Sequence[Activation]) -> list[tuple[int, ...]]:
    """Return the largest sets of activations that are needed at the same time."""
    moments = {a.born for a in activations}
    sets = {
        frozenset(i for i, a in enumerate(activations) if a.born <= moment <= a.last)
        for moment in moments
    }
    return [tuple(sorted(s)) for s in sets if not any(s < other for other in sets)]
