"""Channel groups as values: which entries of which tensors go when a channel goes.

A group is a list of slices. A slice says, for one tensor and one of its dimensions, which entries
belong to each channel of the group; removing channels is nothing but dropping those entries. What
a trial needs (cutting, counting, nesting) follows from these values alone, without tracing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Kept = Mapping[str, Sequence[int]]
"""Kept channels by group name, as ascending indices into the dense group."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """The entries of one tensor dimension that belong to a group's channels."""

    tensor: str
    """Name in the model's state, e.g. ``layer1.conv1.weight``."""
    dim: int
    role: Literal["out", "in"]
    """``out``: produces the channels (or rides on them); ``in``: reads them."""
    index: IntArray
    """Shape [channels, entries per channel]."""

    def entries(self, channels: Sequence[int]) -> IntArray:
        """Return the entries of `channels`, in channel order."""
        return self.index[np.asarray(channels, dtype=np.int64)].reshape(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Channels that can only be removed together. Named after its root layer."""

    name: str
    channels: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """A layer that stays dense, and why."""

    layer: str
    params: int
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """Everything known about a model's channels: groups, blocked layers, shapes and costs."""

    groups: tuple[ChannelGroup, ...]
    blocked: tuple[Blocked, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every parameter, shared ones once."""
    positions: Mapping[str, int]
    """Multiply-accumulates per weight and sample, for each weight of a convolution or linear."""
    norms: tuple[str, ...] = ()
    """BatchNorm scale parameters (gamma), by name."""

    @property
    def channels(self) -> dict[str, int]:
        return {g.name: g.channels for g in self.groups}

    def __getitem__(self, name: str) -> ChannelGroup:
        return next(g for g in self.groups if g.name == name)

    def all_kept(self) -> dict[str, tuple[int, ...]]:
        """Return the dense model's kept channels: all of them."""
        return {g.name: tuple(range(g.channels)) for g in self.groups}


def removed_entries(grouping: Grouping, kept: Kept) -> dict[tuple[str, int], IntArray]:
    """Return, by (tensor, dim), the entries that go when only `kept` channels stay."""
    gone: dict[tuple[str, int], list[IntArray]] = {}
    for group in grouping.groups:
        staying = set(kept[group.name])
        channels = [c for c in range(group.channels) if c not in staying]
        if channels:
            for piece in group.slices:
                gone.setdefault((piece.tensor, piece.dim), []).append(piece.entries(channels))
    return {key: np.unique(np.concatenate(parts)) for key, parts in gone.items()}


def restrict(grouping: Grouping, kept: Kept) -> Grouping:
    """Return the grouping of the model cut to `kept`: same names, entries renumbered."""
    gone = removed_entries(grouping, kept)
    groups = []
    for group in grouping.groups:
        channels = np.asarray(kept[group.name], dtype=np.int64)
        slices = []
        for piece in group.slices:
            index = piece.index[channels]
            removed = gone.get((piece.tensor, piece.dim))
            if removed is not None:
                index = index - np.searchsorted(removed, index)
            slices.append(Slice(tensor=piece.tensor, dim=piece.dim, role=piece.role, index=index))
        groups.append(ChannelGroup(name=group.name, channels=len(channels), slices=tuple(slices)))
    shapes = {name: list(shape) for name, shape in grouping.shapes.items()}
    for (tensor, dim), removed in gone.items():
        if tensor in shapes:
            shapes[tensor][dim] -= len(removed)
    return Grouping(
        groups=tuple(groups),
        blocked=grouping.blocked,
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        positions=grouping.positions,
        norms=grouping.norms,
    )


def to_json(grouping: Grouping) -> dict[str, Any]:
    """Turn a grouping into plain JSON values."""
    return {
        "groups": [
            {
                "name": g.name,
                "channels": g.channels,
                "slices": [[s.tensor, s.dim, s.role, s.index.tolist()] for s in g.slices],
            }
            for g in grouping.groups
        ],
        "blocked": [[b.layer, b.params, b.reason] for b in grouping.blocked],
        "shapes": {name: list(shape) for name, shape in grouping.shapes.items()},
        "positions": dict(grouping.positions),
        "norms": list(grouping.norms),
    }


def from_json(value: Mapping[str, Any]) -> Grouping:
    """Rebuild what `to_json` wrote."""
    return Grouping(
        groups=tuple(
            ChannelGroup(
                name=g["name"],
                channels=g["channels"],
                slices=tuple(
                    Slice(tensor=tensor, dim=dim, role=role, index=np.asarray(index, np.int64))
                    for tensor, dim, role, index in g["slices"]
                ),
            )
            for g in value["groups"]
        ),
        blocked=tuple(Blocked(layer=n, params=p, reason=r) for n, p, r in value["blocked"]),
        shapes={name: tuple(shape) for name, shape in value["shapes"].items()},
        positions=dict(value["positions"]),
        norms=tuple(value["norms"]),
    )
