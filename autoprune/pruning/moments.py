"""Second moments of what layers read: how well some entries can stand in for others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.pruning.rows import rows_at, some_places, some_rows, windows_of

MOST_ENTRIES = 3_072
"""Layers that read more are left out: channels of 1 entry are eliminated in 10 s on one core from
3,072 entries and 768 outputs, in a minute from 4,096 and 4,096. An entry of a convolution is one of
its window: 340 channels of a 3x3 kernel are within the bound."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over the rows that a layer has read, in float64 where the device has it."""

    count: int
    sums: Tensor
    """[entries]"""
    squares: Tensor
    """X^T X, [entries, entries]."""
    bias: bool
    """Whether the layer has a bias, which makes up for what an entry is on average."""

    @classmethod
    def of(cls, rows: Tensor, *, bias: bool) -> Moments:
        """Sum `rows`, [rows, entries]."""
        x = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
        return cls(count=len(x), sums=x.sum(0), squares=x.T @ x, bias=bias)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            count=self.count + other.count,
            sums=self.sums + other.sums,
            squares=self.squares + other.squares,
            bias=self.bias and other.bias,
        )

    @property
    def hessian(self) -> Tensor:
        """Of the layer's squared output error per row, halved: about the mean if it has a bias."""
        second = self.squares / self.count
        if not self.bias:
            return second
        mean = self.sums / self.count
        return second - mean[:, None] * mean


def entries_of(layer: nn.Module) -> int:
    """Return how many entries a row of `input_rows` has."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0] if isinstance(layer, _ConvTransposeNd) else weight[0].numel()


def input_rows(layer: nn.Module, read: Tensor, generator: torch.Generator) -> Tensor:
    """Return what a reader reads, a row for each position: of up to `ROWS_PER_SAMPLE` a sample.

    For a linear layer an entry is an input feature. For a convolution it is a channel at one place
    of the kernel's window. A transposed convolution writes a window for each position it reads: its
    entries are channels, and the windows are taken for outputs of their own.
    """
    if isinstance(layer, nn.Linear):
        rows = read.reshape(-1, read.shape[-1])
        chosen = some_rows(len(rows), read.shape[0] if read.dim() > 1 else 1, generator)
        return rows if chosen is None else rows[chosen.to(rows.device)]
    assert isinstance(layer, _ConvNd)
    spatial = layer.weight.dim() - 2
    if read.dim() == spatial + 1:  # a single sample
        read = read[None]
    seen = read if isinstance(layer, _ConvTransposeNd) else windows_of(layer, read)
    return rows_at(seen, some_places(seen.shape[2 : 2 + spatial], generator))
