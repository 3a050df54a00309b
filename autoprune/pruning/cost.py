"""What a plan costs, exactly, from its widths alone: no model is built to know it.

Every tensor dimension is linear in the widths of the groups that run through it, so a parameter's
size is a product of linear functions: a constant factor, times one for each dimension that groups
run through. Tensors with the same functions are counted together, so that a network of hundreds
of tensors is a sum of few products, and thousands of plans are costed in one sweep.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property

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
        self.groups = [g.name for g in grouping.groups]
        self.names = list(grouping.channels)
        """Columns of a plan's row: the groups, then the blocks."""
        self.channels: Widths = np.array(list(grouping.channels.values()), dtype=np.int64)
        self._columns = {name: i for i, name in enumerate(self.names)}
        self._forms: dict[tuple[int, ...], int] = {}  # (extent, entries per channel of each group)
        # By the forms that are multiplied:
        params: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)
        macs: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)
        entries = self._entries_per_channel(grouping)
        inside = {b: f"{module_of(b)}." for b in grouping.blocks}
        for name, shape in _shapes(grouping).items():
            factor, through = 1, []
            for dim, extent in enumerate(shape):
                per_group = entries.get((name, dim))
                if per_group is None:
                    factor *= extent
                else:
                    through.append(self._form(extent, per_group))
            # A tensor inside a block is there if the block is.
            through += [
                self._form(1, {b: 1}) for b, path in inside.items() if name.startswith(path)
            ]
            params[tuple(sorted(through))] += factor
            for places in grouping.positions.get(name, ()):
                macs[tuple(sorted((*through, *self._through(places))))] += factor * places.times
        for product in grouping.products:
            macs[self._through(product)] += product.times
        self._params = _whole(params)
        self._macs = _whole(macs)
        self._activations = grouping.activations
        self._made = [self._through(a.product) for a in grouping.activations]
        table = np.array(list(self._forms), dtype=np.int64).reshape(-1, 1 + len(self.names))
        self._extents: Widths = table[:, 0]
        # Whole numbers far below 2^53, so that the fast product of floats is exact.
        self._per_channel = table[:, 1:].T.astype(np.float64)

    def _form(self, extent: int, entries: Mapping[str, int]) -> int:
        """Return the number of the linear function that is `extent` for the dense widths."""
        key = (extent, *(entries.get(name, 0) for name in self.names))
        return self._forms.setdefault(key, len(self._forms))

    def _through(self, product: Product) -> tuple[int, ...]:
        return tuple(sorted(self._form(e.size, e.entries) for e in product.extents))

    def _entries_per_channel(self, grouping: Grouping) -> dict[tuple[str, int], dict[str, int]]:
        """Return, by (tensor, dim), how many entries one channel of each group has there."""
        entries: dict[tuple[str, int], dict[str, int]] = {}
        for group in grouping.groups:
            for piece in group.slices:
                # What both makes and reads has two slices, of the same entries.
                known = entries.setdefault((piece.tensor, piece.dim), {})
                known[group.name] = piece.index.shape[1]
        for name, tensor in grouping.weights.items():  # a channel is a single weight
            entries[(tensor, 0)] = {name: 1}
        return entries

    def row(self, widths: Mapping[str, int]) -> Widths:
        """Return `widths` as a row in group order."""
        return np.array([widths[name] for name in self.names], dtype=np.int64)

    def params(self, widths: Mapping[str, int]) -> int:
        """Count the parameters of the model cut to `widths`."""
        return int(self.params_of(self.row(widths)[None])[0])

    def macs(self, widths: Mapping[str, int]) -> int:
        """Count its multiply-accumulates per sample: convolutions and matrix products."""
        return int(self.macs_of(self.row(widths)[None])[0])

    def memory(self, widths: Mapping[str, int]) -> int:
        """Return the peak memory of activations for one sample, in bytes: run layer by layer.

        Every tensor counts from when it is made until it was last needed; the model's parameters
        and inputs do not.
        """
        return int(self.memory_of(self.row(widths)[None])[0])

    def params_of(self, rows: Widths) -> Widths:
        """Count parameters for many plans: `rows` is [plans, groups], the result [plans]."""
        return self._sum(self._params, self._sizes(rows))

    def macs_of(self, rows: Widths) -> Widths:
        """Count multiply-accumulates for many plans: `rows` is [plans, groups]."""
        return self._sum(self._macs, self._sizes(rows))

    def memory_of(self, rows: Widths) -> Widths:
        """Return the peak activation memory of many plans: `rows` is [plans, groups]."""
        sizes = self._sizes(rows)
        each: list[Widths] = [
            sizes[list(through)].prod(0)
            * made.product.times.numerator
            // made.product.times.denominator
            for through, made in zip(self._made, self._activations, strict=True)
        ]
        peak = np.zeros(len(rows), dtype=np.int64)
        for alive in self._alive:
            peak = np.maximum(peak, np.sum([each[i] for i in alive], axis=0))
        return peak

    @cached_property
    def _alive(self) -> list[tuple[int, ...]]:
        return _alive_together(self._activations)

    def _sizes(self, rows: Widths) -> Widths:
        """Return each linear function's value for each plan, [functions, plans]."""
        removed = (self.channels - rows).astype(np.float64) @ self._per_channel
        return self._extents[:, None] - removed.T.astype(np.int64)

    def _sum(self, products: _Products, sizes: Widths) -> Widths:
        terms, divisor = products
        total = np.zeros(sizes.shape[1], dtype=np.int64)
        for times, through in terms:
            each = np.broadcast_to(times[:, None], (len(times), sizes.shape[1]))
            for functions in through.T:
                each = each * sizes[functions]
            total += each.sum(0)
        return total // divisor


_Products = tuple[list[tuple[Widths, Widths]], int]
"""Terms by how many linear functions they multiply: numbers [terms], which functions
[terms, functions]; and what the sum of all is divided by."""


def _whole(totals: Mapping[tuple[int, ...], Fraction]) -> _Products:
    divisor = math.lcm(*(times.denominator for times in totals.values()))
    by_length: dict[int, dict[tuple[int, ...], int]] = {}
    for through, times in totals.items():
        if times:
            by_length.setdefault(len(through), {})[through] = int(times * divisor)
    terms = [
        (
            np.array(list(known.values()), dtype=np.int64),
            np.array(list(known), dtype=np.int64).reshape(len(known), length),
        )
        for length, known in by_length.items()
    ]
    return terms, divisor


def _shapes(grouping: Grouping) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parameters; of those whose single weights are pruned, flattened."""
    flat = set(grouping.weights.values())
    return {n: (math.prod(s),) if n in flat else s for n, s in grouping.shapes.items()}


def _alive_together(activations: Sequence[Activation]) -> list[tuple[int, ...]]:
    """Return the largest sets of activations that are needed at the same time."""
    # What is alive only grows until something is needed for the last time.
    moments = {a.last for a in activations}
    sets = {
        frozenset(i for i, a in enumerate(activations) if a.born <= moment <= a.last)
        for moment in moments
    }
    return [tuple(sorted(s)) for s in sets]
