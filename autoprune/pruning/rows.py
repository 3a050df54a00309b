"""Rows: what a linear layer or convolution multiplies its weight with, at sampled positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

ROWS_PER_SAMPLE = 32
"""Positions of a sample's feature map, or of its sequence, that are looked at."""


def sampled_rows(
    layer: nn.Module, given: Tensor, got: Tensor, wanted: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Return inputs [rows, weights per output] and what is missing [rows, outputs].

    None if the layer's output is not its weight times its input plus its bias.
    """
    if got.shape != wanted.shape:
        return None
    if isinstance(layer, nn.Linear):
        rows = _linear_rows(given, got, wanted, generator)
    else:
        assert isinstance(layer, _ConvNd)
        found = _convolution_rows(layer, given, got, wanted, generator)
        if found is None:
            return None
        rows = found
    x, answer, target = rows
    weight = layer.weight
    assert isinstance(weight, Tensor)
    own = F.linear(x, weight.flatten(1), layer.bias)
    if not torch.allclose(own, answer, rtol=0, atol=1e-2 * float(answer.abs().max())):
        return None
    return x, target - answer


_Rows = tuple[Tensor, Tensor, Tensor]


def _linear_rows(given: Tensor, got: Tensor, wanted: Tensor, generator: torch.Generator) -> _Rows:
    x, answer, target = (t.reshape(-1, t.shape[-1]) for t in (given, got, wanted))
    chosen = some_rows(len(x), given.shape[0] if given.dim() > 1 else 1, generator)
    if chosen is None:
        return x, answer, target
    chosen = chosen.to(x.device)
    return x[chosen], answer[chosen], target[chosen]


def _convolution_rows(
    layer: _ConvNd, given: Tensor, got: Tensor, wanted: Tensor, generator: torch.Generator
) -> _Rows | None:
    spatial = layer.weight.dim() - 2
    if given.dim() == spatial + 1:  # a single sample
        given, got, wanted = given[None], got[None], wanted[None]
    windows = windows_of(layer, given)
    sizes = windows.shape[2 : 2 + spatial]
    if sizes != got.shape[2:]:
        return None
    places = some_places(sizes, generator)
    return rows_at(windows, places), rows_at(got, places), rows_at(wanted, places)


def some_rows(count: int, samples: int, generator: torch.Generator) -> Tensor | None:
    """Draw up to `ROWS_PER_SAMPLE` rows for each sample; None if that is all of them."""
    most = ROWS_PER_SAMPLE * samples
    if count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most].sort().values


def some_places(sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Draw up to `ROWS_PER_SAMPLE` places of a feature map: an index for each of its dimensions."""
    count = int(np.prod(sizes))
    flat = torch.randperm(count, generator=generator)[:ROWS_PER_SAMPLE].sort().values
    return [torch.from_numpy(p) for p in np.unravel_index(flat.numpy(), tuple(sizes))]


def rows_at(of: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Take [samples, channels, *positions, ...] at `places`: a row for each sample and place."""
    index: list[slice | Tensor] = [slice(None), slice(None)]
    index += [place.to(of.device) for place in places]
    chosen = of[tuple(index)].movedim(2, 1)
    return chosen.reshape(chosen.shape[0] * chosen.shape[1], -1)


def windows_of(layer: _ConvNd, given: Tensor) -> Tensor:
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
