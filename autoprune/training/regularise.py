"""What else may act on weights while they are trained: penalties, shrinking, gates on channels.

Everything here works on the slices of a grouping, whatever module a tensor belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.pruning.groups import ChannelGroup, Grouping, Slice


class Regulariser:
    """The hooks that `finetune` calls around each step. This one does nothing."""

    def trained(self) -> list[dict[str, Any]]:
        """Return parameters of its own to train along, as an optimiser's parameter groups."""
        return []

    def before_step(self) -> None:
        """Run before a batch's forward pass."""

    def penalty(self) -> Tensor | None:
        """Return what to add to the loss."""
        return None

    def after_backward(self) -> None:
        """Run when the gradients are there, before the optimiser's step."""

    def after_step(self, lr: float) -> None:
        """Run after the optimiser's step, which had learning rate `lr`; without gradients."""

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Show the model as it would be if training ended here, for scoring it."""
        yield

    def finish(self) -> None:
        """Run after the last step: leave the model as it is to be; without gradients."""

    def state(self) -> dict[str, Tensor] | None:
        """Return what changes from step to step, for a checkpoint; empty if nothing does.

        None, as here for classes that do not say, means that it cannot be put where it stood: no
        checkpoint is written then.
        """
        return {} if type(self) is Regulariser else None

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned; the rest is as it was made."""


class StayingZero(Regulariser):
    """Keeps pruned weights at zero: after each step they are set to zero again.

    Parameters
    ----------
    masks
        By parameter, 1 where it is trained and 0 where it stays zero.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._masks = [(model.get_parameter(name), mask) for name, mask in masks.items()]

    def after_step(self, lr: float) -> None:
        for parameter, mask in self._masks:
            parameter.mul_(mask.to(parameter.device))

    def state(self) -> dict[str, Tensor]:
        return {str(number): mask for number, (_, mask) in enumerate(self._masks)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._masks = [
            (parameter, state[str(number)]) for number, (parameter, _) in enumerate(self._masks)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A slice of a parameter: which of its entries along `dim` belong to which channel."""

    parameter: nn.Parameter
    dim: int
    index: Tensor
    """[channels, entries per channel], on the parameter's device."""
    owner: Tensor
    """By entry along `dim`, the channel it belongs to; the number of channels for none."""

    def squares(self) -> Tensor:
        """Return the sum of squares of each channel's entries, [channels]."""
        return self._summed(self.parameter.detach().square())

    def numel(self) -> int:
        """Return how many numbers a channel has here."""
        return self.parameter.numel() // self.parameter.shape[self.dim] * self.index.shape[1]

    def spread(self, values: Tensor, *, rest: float = 1.0) -> Tensor:
        """Lay one value per channel out so that it broadcasts against the parameter.

        Entries that belong to no channel get `rest`.
        """
        along = torch.cat([values, values.new_full((1,), rest)])[self.owner]
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        return along.to(self.parameter.dtype).view(shape)

    def _summed(self, values: Tensor) -> Tensor:
        other = [d for d in range(values.dim()) if d != self.dim]
        along = values.float().sum(other) if other else values.float()
        return along[self.index].sum(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Channels:
    """The trainable parameters of a group, by what they are to its channels."""

    name: str
    count: int
    kernels: tuple[Part, ...]
    """Weights of at least two dimensions that produce the channels."""
    vectors: tuple[Part, ...]
    """One number or a few a channel that ride on it: biases, scales and shifts of norms."""
    gammas: tuple[Part, ...]
    """Those vectors that are BatchNorm scales."""
    readers: tuple[Part, ...]
    """Weights that read the channels."""
    doomed: tuple[int, ...] = ()
    """The channels that the plan's widths and criterion would remove."""

    @property
    def producers(self) -> tuple[Part, ...]:
        return self.kernels + self.vectors

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.producers + self.readers

    @property
    def weights(self) -> tuple[Part, ...]:
        """What magnitude is measured on: kernels, or what there is without any."""
        return self.kernels or self.vectors or self.readers

    def full(self, value: float) -> Tensor:
        """Return one value per channel, on the group's device."""
        return torch.full((self.count,), value, device=self.parts[0].parameter.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scope:
    """What a sparsifier acts on, for how long and how strongly."""

    groups: tuple[Channels, ...]
    steps: int
    """Optimiser steps ahead."""
    total_lr: float
    """Sum of the learning rates of all steps."""
    strength: float
    """Factor on the method's own usual strength."""
    stake: float
    """By how much the loss is larger without any of the channels: the scale for penalties."""
    generator: torch.Generator
    """For whatever is drawn; on the model's device."""


def joint_norm(parts: Sequence[Part]) -> Tensor:
    """Return the L2 norm of each channel's entries in all `parts` together, [channels]."""
    return torch.stack([part.squares() for part in parts]).sum(0).sqrt()


def scale(parts: Sequence[Part], factor: Tensor) -> None:
    """Multiply each channel's entries in all `parts` by its factor, in place."""
    for part in parts:
        part.parameter.mul_(part.spread(factor))


def channels_of(
    model: nn.Module, grouping: Grouping, *, doomed: Mapping[str, Sequence[int]] | None = None
) -> tuple[Channels, ...]:
    """Return the trainable parameters of each group; groups that have none are left out.

    Parameters
    ----------
    doomed
        Channels to be removed, by group.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for group in grouping.groups:
        parts = _parts(group, parameters, grouping.norms)
        if any(parts.values()):
            gone = tuple((doomed or {}).get(group.name, ()))
            found.append(Channels(name=group.name, count=group.channels, doomed=gone, **parts))
    return tuple(found)


def _parts(
    group: ChannelGroup, parameters: Mapping[str, nn.Parameter], norms: Sequence[str]
) -> dict[str, tuple[Part, ...]]:
    parts: dict[str, list[Part]] = {"kernels": [], "vectors": [], "gammas": [], "readers": []}
    seen: set[tuple[int, int, str, bytes]] = set()
    for piece in group.slices:
        parameter = parameters.get(piece.tensor)
        if parameter is None or not parameter.requires_grad:
            continue
        key = (id(parameter), piece.dim, piece.role, piece.index.tobytes())
        if key in seen:  # a tied parameter, listed under each of its names
            continue
        seen.add(key)
        part = _part(piece, parameter)
        if piece.role == "in":
            parts["readers"].append(part)
        else:
            parts["kernels" if parameter.dim() > 1 else "vectors"].append(part)
        if piece.tensor in norms:
            parts["gammas"].append(part)
    return {name: tuple(found) for name, found in parts.items()}


def _part(piece: Slice, parameter: nn.Parameter) -> Part:
    index = torch.from_numpy(piece.index).to(parameter.device)
    owner = torch.full((parameter.shape[piece.dim],), len(index), device=parameter.device)
    numbers = torch.arange(len(index), device=parameter.device)
    owner[index] = numbers[:, None].expand_as(index)
    return Part(parameter=parameter, dim=piece.dim, index=index, owner=owner)
