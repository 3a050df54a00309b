"""What a convolution reads for each output, and a few places of a feature map to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

ROWS_PER_SAMPLE = 32
"""Positions of a sample's feature map, or of its sequence, that are looked at."""


def windows(layer: _ConvNd, given: Tensor) -> Tensor:
    """View a convolution's input as [samples, channels, *output positions, *kernel]."""
    spatial = layer.weight.dim() - 2
    pads: list[int] = []
    for dim in reversed(range(spatial)):
        if isinstance(layer.padding, str):
            total = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
            total = total if layer.padding == "same" else 0
            pads += [total // 2, total - total // 2]
        else:
            pads += [int(layer.padding[dim])] * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = F.pad(given, pads, mode=mode) if any(pads) else given
    for dim in range(spatial):
        size = layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
        windows = windows.unfold(2 + dim, size, layer.stride[dim])
    taps = [slice(None)] * (2 + spatial)
    taps += [slice(None, None, layer.dilation[dim]) for dim in range(spatial)]
    return windows[tuple(taps)]


def some_places(
    sizes: Sequence[int], generator: torch.Generator, most: int = ROWS_PER_SAMPLE
) -> list[Tensor]:
    """Draw up to `most` places of a feature map: an index for each of its dimensions."""
    flat = torch.randperm(int(np.prod(sizes)), generator=generator)[:most].sort().values
    return [torch.from_numpy(p) for p in np.unravel_index(flat.numpy(), tuple(sizes))]


def rows_at(of: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Take [samples, channels, *positions, ...] at `places`: a row for each sample and place."""
    index: list[slice | Tensor] = [slice(None), slice(None)]
    index += [p.to(of.device) for p in places]
    chosen = of[tuple(index)].movedim(2, 1)
    return chosen.reshape(chosen.shape[0] * chosen.shape[1], -1)


def some_rows(
    count: int, samples: int, generator: torch.Generator, each: int = ROWS_PER_SAMPLE
) -> Tensor | None:
    """Draw up to `each` rows for each sample; None if that is all of them."""
    most = each * samples
    if count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most].sort().values
