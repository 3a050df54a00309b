"""Reconstruction: layers that read pruned channels are refitted to give what they gave before.

He et al. 2017 and Luo et al. 2017 (ThiNet): by least squares over calibration samples, without a
single training step. Layer by layer in forward order, so that each sees what the cut model really
gives it; regularised towards the weights that the cut left, so that few samples do no harm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.pruning.forward import call, shared_names
from autoprune.pruning.groups import Grouping, Kept, removed_entries
from autoprune.pruning.layers import picked
from autoprune.pruning.readers import channel_dim, first_input
from autoprune.pruning.rows import sampled_rows

MOST_UNKNOWNS = 8_192
"""Layers with more weights per output are left: their normal equations would take over 0.5 GB."""
HELD_OUT = 4
"""The last of so many parts of a batch's samples tells which ridge is best."""
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
        targets = _targets(small, grouping, kept)
        for name, times in _in_forward_order(small, list(targets), batches[:1]).items():
            layers = (parent.get_submodule(name), small.get_submodule(name))
            equations = _equations((parent, small), layers, targets[name], batches, times)
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
    model: nn.Module, names: Sequence[str], batches: Sequence[Any]
) -> dict[str, int]:
    """Return how often `model` calls each layer that it calls at all, first called first."""
    called: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def after(*_: object) -> None:
            called[name] = called.get(name, 0) + 1

        return after

    hooks = [model.get_submodule(n).register_forward_hook(note(n)) for n in names]
    try:
        for batch in batches:
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return called


class _Reached(BaseException):
    """The layer has been called as often as it will be: no need to run the rest of the model."""


@contextmanager
def _watching(layer: nn.Module, times: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the input and output of each call of `layer`: copies, as others may write there.

    After the last of so many `times`, `_Reached` is raised.
    """
    calls: list[tuple[Tensor, Tensor]] = []
    before: list[Tensor | None] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        given = first_input(args, kwargs)
        before.append(None if given is None else given.clone())

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        given = before.pop()
        if given is not None and isinstance(output, Tensor):
            calls.append((picked(layer, given), output.clone()))
        if len(calls) == times:
            raise _Reached

    hooks = (
        layer.register_forward_pre_hook(enter, with_kwargs=True),
        layer.register_forward_hook(leave),
    )
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
    models: tuple[nn.Module, nn.Module],
    layers: tuple[nn.Module, nn.Module],
    stays: Tensor,
    batches: Sequence[Any],
    times: int,
) -> tuple[_Normal, _Normal] | None:
    """Run both models up to a layer; return the equations to fit and those held out."""
    generator = torch.Generator().manual_seed(0)
    fit: _Normal | None = None
    held_out: _Normal | None = None
    for batch in batches:
        with _watching(layers[0], times) as before, _watching(layers[1], times) as now:
            for model in models:
                with suppress(_Reached):
                    call(model, batch)
        if len(before) != len(now):
            return None  # the two take different ways
        for (_, whole), (given, got) in zip(before, now, strict=True):
            wanted = whole.index_select(channel_dim(layers[1], whole), stays.to(whole.device))
            rows = sampled_rows(layers[1], given, got, wanted, generator)
            if rows is None:
                return None
            x, missing = rows
            end = len(x) - len(x) // HELD_OUT
            bias = layers[1].bias is not None
            one = _Normal.of(x[:end], missing[:end], bias=bias)
            other = _Normal.of(x[end:], missing[end:], bias=bias)
            fit = one if fit is None else fit + one
            held_out = other if held_out is None else held_out + other
    return None if fit is None or held_out is None else (fit, held_out)


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
