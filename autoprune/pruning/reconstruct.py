"""Reconstruction: layers that read pruned channels are refitted to give what they gave before.

He et al. 2017 and Luo et al. 2017 (ThiNet): by least squares over calibration samples, without a
single training step. Layer by layer in forward order, so that each sees what the cut model really
gives it; regularised towards the weights that the cut left, so that few samples do no harm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.pruning.forward import call, shared_names
from autoprune.pruning.groups import Grouping, Kept, removed_entries
from autoprune.pruning.readers import first_input

ROWS_PER_SAMPLE = 64
"""Positions of a sample's feature map, or of its sequence, that are looked at."""
MOST_UNKNOWNS = 8_192
"""Layers with more weights per output are left: their normal equations would take over 0.5 GB."""
HELD_OUT = 4
"""One in so many rows tells which ridge is best."""
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges to choose from, as a share of the inputs' mean square."""


def reconstructed(
    parent: nn.Module,
    small: nn.Module,
    grouping: Grouping,
    kept: Kept,
    batches: Sequence[Any],
) -> nn.Module:
    """Return a copy of `small` whose readers of pruned channels give what `parent`'s did.

    For each such reader, in forward order, with X its inputs in the cut model at sampled
    positions, Y the parent's outputs there and W0, b0 its weights after the cut, it takes

        argmin_W,b  |X W + b - Y|^2 + ridge |W - W0|^2

    with the ridge that fits held-out rows best, or W0 and b0 if none does better than them. Linear
    layers and ungrouped, untransposed convolutions are refitted; others are left, as are shared
    weights and layers whose output is more than their weight times their input.

    Parameters
    ----------
    parent, grouping, kept
        The model that `small` was cut from, its groups and the channels that stayed.
    batches
        What the models are called with, on their device.
    """
    small = copy.deepcopy(small)
    training = parent.training
    with torch.no_grad():
        parent.eval()
        small.eval()
        for name, stays in _in_forward_order(small, _targets(small, grouping, kept), batches[:1]):
            layers = (parent.get_submodule(name), small.get_submodule(name))
            equations = _equations(parent, small, layers, stays, batches)
            change = None if equations is None else _best_change(*equations)
            if change is not None:
                _apply(layers[1], change)
    parent.train(training)
    return small


def _targets(small: nn.Module, grouping: Grouping, kept: Kept) -> dict[str, Tensor]:
    """Return, by name of a layer to refit, which of the parent's outputs it still has."""
    gone = removed_entries(grouping, kept)
    ties = shared_names(small)
    tied = {*ties, *ties.values()}
    found = {}
    for tensor, dim in gone:
        name, _, attribute = tensor.rpartition(".")
        if attribute != "weight" or dim != 1 or tensor in tied:
            continue
        layer = small.get_submodule(name)
        linear = isinstance(layer, nn.Linear)
        convolution = isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd)
        if not linear and not (convolution and layer.groups == 1):
            continue
        assert isinstance(layer.weight, Tensor)
        if _unknowns(layer) <= MOST_UNKNOWNS and f"{name}.bias" not in tied:
            removed = gone.get((tensor, 0), np.empty(0, dtype=np.int64))
            outputs = np.arange(len(layer.weight) + len(removed))
            found[name] = torch.from_numpy(np.setdiff1d(outputs, removed))
    return found


def _unknowns(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return layer.weight[0].numel() + (layer.bias is not None)


def _in_forward_order(
    model: nn.Module, targets: dict[str, Tensor], batches: Sequence[Any]
) -> list[tuple[str, Tensor]]:
    """Return the targets that `model` calls, first called first."""
    called: dict[str, None] = {}
    with _watching({n: model.get_submodule(n) for n in targets}) as calls:
        for batch in batches:
            calls.clear()
            call(model, batch)
            called |= dict.fromkeys(name for name, _, _ in calls)
    return [(name, targets[name]) for name in called]


@contextmanager
def _watching(layers: dict[str, nn.Module]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Collect (name, input, output) of each call of `layers`."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str) -> Any:
        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = first_input(args, kwargs)
            if given is not None and isinstance(output, Tensor):
                calls.append((name, given, output))

        return after

    hooks = [m.register_forward_hook(note(n), with_kwargs=True) for n, m in layers.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


# --- the equations ------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Normal:
    """Normal equations of the change D in weights and bias: min |X D - R|^2, R what is missing."""

    xx: Tensor
    xr: Tensor
    rr: Tensor
    bias: bool
    """Whether the last unknown is the bias."""

    @classmethod
    def of(cls, x: Tensor, missing: Tensor, *, bias: bool) -> _Normal:
        # Sums of many products: float64, where the device has it.
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        x, missing = x.to(exact), missing.to(exact)
        if bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        return cls(xx=x.T @ x, xr=x.T @ missing, rr=missing.square().sum(), bias=bias)

    def __add__(self, other: _Normal) -> _Normal:
        return _Normal(
            xx=self.xx + other.xx, xr=self.xr + other.xr, rr=self.rr + other.rr, bias=self.bias
        )

    def solve(self, ridge: float) -> Tensor | None:
        """Return the best change, [unknowns, outputs]; None if the equations are singular."""
        diagonal = self.xx.diagonal()
        weights = len(diagonal) - self.bias
        penalty = torch.zeros_like(diagonal)
        penalty[:weights] = ridge * diagonal[:weights].mean()
        factor, info = torch.linalg.cholesky_ex(self.xx + penalty.diag())
        if int(info):
            return None
        return torch.cholesky_solve(self.xr, factor)

    def error(self, change: Tensor) -> float:
        """Return |X D - R|^2."""
        return float((change * (self.xx @ change - 2 * self.xr)).sum() + self.rr)


def _equations(
    parent: nn.Module,
    small: nn.Module,
    layers: tuple[nn.Module, nn.Module],
    stays: Tensor,
    batches: Sequence[Any],
) -> tuple[_Normal, _Normal] | None:
    """Run both models and return the equations to fit and those held out."""
    generator = torch.Generator().manual_seed(0)
    totals: list[_Normal] | None = None
    for batch in batches:
        answers = []
        for model, layer in zip((parent, small), layers, strict=True):
            with _watching({"": layer}) as calls:
                call(model, batch)
            answers.append(list(calls))
        if [len(a) for a in answers] != [len(answers[1])] * 2:
            return None  # the two take different ways
        for (_, _, wanted), (_, given, got) in zip(*answers, strict=True):
            wanted = wanted.index_select(_output_dim(layers[1], wanted), stays.to(wanted.device))
            rows = _sampled_rows(layers[1], given, got, wanted, generator)
            if rows is None:
                return None
            x, missing = rows
            out = torch.arange(len(x)) % HELD_OUT == HELD_OUT - 1
            parts = [
                _Normal.of(x[mask], missing[mask], bias=layers[1].bias is not None)
                for mask in (~out.to(x.device), out.to(x.device))
            ]
            totals = (
                parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
            )
    return None if totals is None else (totals[0], totals[1])


def _best_change(fit: _Normal, held_out: _Normal) -> Tensor | None:
    """Return the change that does best on held-out rows, refitted on all; None if none helps."""
    best, least = None, float(held_out.rr)
    for ridge in RIDGES:
        change = fit.solve(ridge)
        if change is not None and held_out.error(change) < least:
            best, least = ridge, held_out.error(change)
    return None if best is None else (fit + held_out).solve(best)


def _apply(layer: nn.Module, change: Tensor) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if isinstance(bias, Tensor):
        bias.add_(change[-1].to(bias.dtype))
        change = change[:-1]
    weight.add_(change.T.reshape(weight.shape).to(weight.dtype))


# --- rows ---------------------------------------------------------------------------------------


def _output_dim(layer: nn.Module, output: Tensor) -> int:
    """Return which dimension of a layer's output has its channels."""
    if isinstance(layer, nn.Linear):
        return output.dim() - 1
    assert isinstance(layer.weight, Tensor)
    return output.dim() - (layer.weight.dim() - 2) - 1


def _sampled_rows(
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
    most = ROWS_PER_SAMPLE * (given.shape[0] if given.dim() > 1 else 1)
    if len(x) <= most:
        return x, answer, target
    chosen = torch.randperm(len(x), generator=generator)[:most].sort().values.to(x.device)
    return x[chosen], answer[chosen], target[chosen]


def _convolution_rows(
    layer: _ConvNd, given: Tensor, got: Tensor, wanted: Tensor, generator: torch.Generator
) -> _Rows | None:
    spatial = layer.weight.dim() - 2
    if given.dim() == spatial + 1:  # a single sample
        given, got, wanted = given[None], got[None], wanted[None]
    windows = _windows(layer, given)
    sizes = windows.shape[2 : 2 + spatial]
    if sizes != got.shape[2:]:
        return None
    count = int(np.prod(sizes))
    flat = torch.randperm(count, generator=generator)[:ROWS_PER_SAMPLE].sort().values
    places = tuple(torch.from_numpy(p) for p in np.unravel_index(flat.numpy(), tuple(sizes)))
    places = tuple(p.to(given.device) for p in places)
    x = windows[(slice(None), slice(None), *places)]  # [samples, channels, places, *kernel]
    x = x.movedim(2, 1).reshape(-1, layer.weight[0].numel())
    answer, target = (
        t[(slice(None), slice(None), *places)].movedim(2, 1).reshape(-1, t.shape[1])
        for t in (got, wanted)
    )
    return x, answer, target


def _windows(layer: _ConvNd, given: Tensor) -> Tensor:
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
    taps = tuple(slice(None, None, layer.dilation[dim]) for dim in range(spatial))
    return windows[(..., *taps)]
