"""Rows: what a linear layer or convolution multiplies its weight with, at sampled positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning.windows import rows_at, some_places, some_rows, windows


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
    read = windows(layer, given)
    sizes = read.shape[2 : 2 + spatial]
    if sizes != got.shape[2:]:
        return None
    places = some_places(sizes, generator)
    return rows_at(read, places), rows_at(got, places), rows_at(wanted, places)
