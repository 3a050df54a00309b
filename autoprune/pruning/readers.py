"""Readers: the layers that read a group's channels, watched while calibration batches go through.

What a reader reads can be seen where it is a linear layer or an ungrouped convolution that is
called as a module. Others (recurrent layers, attention's own projections, bare parameters) show
nothing, and the criteria say what they do then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.pruning.forward import tensors_of
from autoprune.pruning.groups import ChannelGroup, Grouping, Slice
from autoprune.pruning.layers import picked
from autoprune.pruning.moments import MOST_ENTRIES, Moments, entries_of, input_rows


@dataclass(frozen=True, kw_only=True)
class InputStats:
    """What a layer's inputs were, by entry of its input dimension, over samples and positions."""

    count: int
    """Samples x positions."""
    mean: Tensor
    deviations: Tensor
    """Sum of squared deviations from the mean."""
    zeros: Tensor
    """How often the entry was exactly zero."""

    @classmethod
    def of(cls, rows: Tensor) -> InputStats:
        """Describe `rows`, [positions, entries]."""
        mean = rows.mean(0)
        return cls(
            count=len(rows),
            mean=mean,
            deviations=(rows - mean).square().sum(0),
            zeros=(rows == 0).sum(0).to(rows.dtype),
        )

    def __add__(self, other: InputStats) -> InputStats:
        """Join the statistics of two sets (Chan et al. 1983, eq. 1.5: no cancellation)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return InputStats(
            count=count,
            mean=self.mean + apart * (other.count / count),
            deviations=self.deviations
            + other.deviations
            + apart.square() * (self.count * other.count / count),
            zeros=self.zeros + other.zeros,
        )

    @property
    def norm(self) -> Tensor:
        """L2 norm over all samples and positions."""
        return (self.deviations + self.count * self.mean.square()).sqrt()

    @property
    def variance(self) -> Tensor:
        return self.deviations / self.count

    @property
    def active(self) -> Tensor:
        """Share of the samples and positions at which the entry was not zero."""
        return 1 - self.zeros / self.count


def reading_layers(model: nn.Module, piece: Slice) -> list[nn.Module]:
    """Return the layers whose input channels are the entries of `piece`: none if it hides them.

    There are several where layers share their weight.
    """
    weight = dict(model.named_parameters(remove_duplicate=False)).get(piece.tensor)
    if weight is None:
        return []
    return [m for m in model.modules() if _reads(m, piece) and m.weight is weight]


def _reads(module: nn.Module, piece: Slice) -> bool:
    if isinstance(module, _ConvNd):
        return module.groups == 1 and piece.dim == (
            0 if isinstance(module, _ConvTransposeNd) else 1
        )
    return isinstance(module, nn.Linear) and piece.dim == 1


def channel_dim(layer: nn.Module, given: Tensor) -> int:
    """Return which dimension of a reader's input, or of its output, has the channels."""
    if isinstance(layer, nn.Linear):
        return given.dim() - 1
    assert isinstance(layer.weight, Tensor)
    return given.dim() - (layer.weight.dim() - 2) - 1


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return what a reader was called with."""
    given = args[0] if args else kwargs.get("input")
    return given if isinstance(given, Tensor) and given.dim() else None


class Readers:
    """Watches every group's readers: what they read, and the gradients of gates on it.

    Liu et al. 2021 (Group Fisher): a gate is a factor of 1 on a channel, shared by all layers that
    read it. Its gradient for a sample is the sum, over readers and positions, of input x input's
    gradient.

    Attributes
    ----------
    inputs
        By weight tensor, the statistics of what its layers have read so far.
    moments
        By weight tensor, the second moments of what its layers have read so far, if they are asked
        for; of weights that read at most `MOST_ENTRIES`.
    samples
        How many samples the last batch had.
    """

    def __init__(self, model: nn.Module, grouping: Grouping, *, moments: bool = False) -> None:
        self.inputs: dict[str, InputStats] = {}
        self.moments: dict[str, Moments] = {}
        self.samples = 0
        self._wants_moments = moments
        self._generator = torch.Generator().manual_seed(0)
        self._model = model
        self._weights = tuple(grouping.weights.values())
        self._slices = {g.name: [s for s in g.slices if s.role == "in"] for g in grouping.groups}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._products: dict[str, Tensor] = {}

    def __enter__(self) -> Readers:
        pieces = {(s.tensor, s.dim): s for slices in self._slices.values() for s in slices}
        for tensor in self._weights:  # single weights are pruned: each of them reads
            nothing = np.empty((0, 1), dtype=np.int64)
            pieces[(tensor, 1)] = Slice(tensor=tensor, dim=1, role="in", index=nothing)
        for piece in pieces.values():
            for layer in reading_layers(self._model, piece):
                hook = self._watch(piece.tensor)
                self._hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        self._hooks.append(
            self._model.register_forward_pre_hook(self._count_samples, with_kwargs=True)
        )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def clear(self) -> None:
        """Forget the last batch's gates."""
        self._products.clear()

    def _count_samples(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [t for t in tensors_of((args, kwargs)) if t.dim()]
        self.samples = int(tensors[0].shape[0]) if tensors else 1

    def _watch(self, tensor: str) -> Callable[[nn.Module, Any, Any], Any]:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = first_input(args, kwargs)
            if given is None:
                return None
            dim = channel_dim(layer, given)
            read = picked(layer, given.detach())
            self._note(tensor, read.movedim(dim, -1))
            if self._wants_moments and entries_of(layer) <= MOST_ENTRIES:
                self._note_moments(tensor, layer, read)
            if not self.samples or given.shape[0] % self.samples:
                return None  # not one row or more per sample: no gate to read
            # A node of its own: an input shared by two readers must not see both gradients.
            own: Tensor = given.view_as(given)
            if not own.requires_grad:
                own.requires_grad_()  # what is read may be the data themselves

            def after(gradient: Tensor) -> None:
                product = picked(layer, own.detach() * gradient).movedim(dim, -1)
                rows = product.reshape(self.samples, -1, product.shape[-1]).sum(1)
                self._products[tensor] = self._products.get(tensor, 0) + rows

            own.register_hook(after)  # type: ignore[no-untyped-call]
            return ((own, *args[1:]), kwargs) if args else ((), {**kwargs, "input": own})

        return before

    def _note(self, tensor: str, read: Tensor) -> None:
        rows = read.reshape(-1, read.shape[-1]).float()
        if len(rows):
            stats = InputStats.of(rows)
            known = self.inputs.get(tensor)
            self.inputs[tensor] = stats if known is None else known + stats

    def _note_moments(self, tensor: str, layer: nn.Module, read: Tensor) -> None:
        rows = input_rows(layer, read, self._generator)
        if len(rows):
            found = Moments.of(rows, bias=layer.bias is not None)
            known = self.moments.get(tensor)
            self.moments[tensor] = found if known is None else known + found

    def per_sample(self, group: ChannelGroup) -> Tensor | None:
        """Return the gates' gradients for the last batch, [samples, channels].

        None where a reader, or all there is, hides what it reads: a part of a gate is no gate.
        """
        total: Tensor | None = None
        for piece in self._slices[group.name]:
            product = self._products.get(piece.tensor)
            if product is None:
                return None
            index = torch.from_numpy(piece.index).to(product.device)
            gate = product[:, index].sum(-1)
            total = gate if total is None else total + gate
        return total
