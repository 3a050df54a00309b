"""Channel groups as values: which entries of which tensors go when a channel goes.

A group is a list of slices. A slice says, for one tensor and one of its dimensions, which entries
belong to each channel of the group; removing channels is nothing but dropping those entries. What
a trial needs (cutting, counting, nesting) follows from these values alone, without tracing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Kept = Mapping[str, Sequence[int]]
"""Kept channels by group name, as ascending indices into the dense group. A block has one channel,
which need not stay; it stays if it is not named."""

BLOCK = ".block"
"""What is appended to a module's name to name it as a block that can be dropped whole."""


def module_of(block: str) -> str:
    """Return the name of the module that a block is.

    >>> module_of("layer1.0.block")
    'layer1.0'
    """
    return block.removesuffix(BLOCK)


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


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A number that shrinks with groups: ``size`` less ``entries`` per channel removed."""

    size: int
    entries: Mapping[str, int]
    """Entries per channel, by group."""

    def at(self, removed: Mapping[str, int]) -> Extent:
        """Return the extent once so many channels of each group are removed.

        A block that a study may not drop is none of its groups, and stays.
        """
        gone = sum(count * removed.get(name, 0) for name, count in self.entries.items())
        return Extent(size=self.size - gone, entries=self.entries)


@dataclass(frozen=True, kw_only=True)
class Product:
    """A number of operations: extents multiplied, `times` over."""

    extents: tuple[Extent, ...]
    times: Fraction


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A tensor made while the model runs: its size in bytes a sample, and when it is needed."""

    product: Product
    born: int
    last: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """Everything known about a model's channels: groups, blocked layers, shapes and costs."""

    groups: tuple[ChannelGroup, ...]
    blocked: tuple[Blocked, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every parameter, shared ones once."""
    positions: Mapping[str, tuple[Product, ...]]
    """Multiply-accumulates of each entry of a weight, for one sample: the sum of these."""
    products: tuple[Product, ...] = ()
    """Multiply-accumulates for one sample that are no weight's, as those of attention."""
    activations: tuple[Activation, ...] = ()
    """Tensors made on the way, to know how much memory a run needs."""
    norms: tuple[str, ...] = ()
    """BatchNorm scale parameters (gamma), by name."""
    blocks: tuple[str, ...] = ()
    """Residual blocks that can be dropped whole, by name."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Where single weights are pruned: the tensor of each group, whose "channels" are its weights.
    Such groups have no slices."""

    @property
    def channels(self) -> dict[str, int]:
        """The dense widths: channels by group, and 1 for each block."""
        return {g.name: g.channels for g in self.groups} | dict.fromkeys(self.blocks, 1)

    def __getitem__(self, name: str) -> ChannelGroup:
        return next(g for g in self.groups if g.name == name)

    def all_kept(self) -> dict[str, tuple[int, ...]]:
        """Return the dense model's kept channels: all of them."""
        return {name: tuple(range(count)) for name, count in self.channels.items()}

    def dropped(self, kept: Kept) -> tuple[str, ...]:
        """Return the modules that `kept` drops whole."""
        return tuple(module_of(block) for block in self.blocks if not kept.get(block, (0,)))


def removed_entries(grouping: Grouping, kept: Kept) -> dict[tuple[str, int], IntArray]:
    """Return, by (tensor, dim), the entries that go when only `kept` channels stay."""
    gone: dict[tuple[str, int], list[IntArray]] = {}
    grouping = without_modules(grouping, grouping.dropped(kept))
    for group in grouping.groups:
        staying = set(kept[group.name])
        channels = [c for c in range(group.channels) if c not in staying]
        if channels:
            for piece in group.slices:
                gone.setdefault((piece.tensor, piece.dim), []).append(piece.entries(channels))
    return {key: np.unique(np.concatenate(parts)) for key, parts in gone.items()}


def without_modules(grouping: Grouping, modules: Sequence[str]) -> Grouping:
    """Return the grouping of the model that lacks some modules."""
    if not modules:
        return grouping
    prefixes = tuple(f"{name}." for name in modules)

    def left(tensor: str) -> bool:
        return not tensor.startswith(prefixes)

    return replace(
        grouping,
        groups=tuple(
            replace(g, slices=tuple(s for s in g.slices if left(s.tensor))) for g in grouping.groups
        ),
        blocked=tuple(b for b in grouping.blocked if left(f"{b.layer}.")),
        shapes={n: shape for n, shape in grouping.shapes.items() if left(n)},
        positions={n: times for n, times in grouping.positions.items() if left(n)},
        norms=tuple(n for n in grouping.norms if left(n)),
    )


def restrict(grouping: Grouping, kept: Kept) -> Grouping:
    """Return the grouping of the model cut to `kept`: same names, entries renumbered."""
    gone = removed_entries(grouping, kept)
    fewer = {name: count - len(kept.get(name, (0,))) for name, count in grouping.channels.items()}
    grouping = without_modules(grouping, grouping.dropped(kept))
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

    def shrunk(product: Product) -> Product:
        return replace(product, extents=tuple(e.at(fewer) for e in product.extents))

    return replace(
        grouping,
        groups=tuple(groups),
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        positions={n: tuple(map(shrunk, each)) for n, each in grouping.positions.items()},
        products=tuple(shrunk(p) for p in grouping.products),
        blocks=tuple(block for block in grouping.blocks if kept.get(block, (0,))),
        activations=tuple(replace(a, product=shrunk(a.product)) for a in grouping.activations),
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
        "positions": {name: _places_json(each) for name, each in grouping.positions.items()},
        "products": [_product_json(p) for p in grouping.products],
        "activations": [[_product_json(a.product), a.born, a.last] for a in grouping.activations],
        "norms": list(grouping.norms),
        "blocks": list(grouping.blocks),
        "weights": dict(grouping.weights),
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
        positions={name: _places(each) for name, each in value["positions"].items()},
        products=tuple(_product(p) for p in value["products"]),
        activations=tuple(
            Activation(product=_product(p), born=born, last=last)
            for p, born, last in value["activations"]
        ),
        norms=tuple(value["norms"]),
        blocks=tuple(value["blocks"]),
        weights=dict(value["weights"]),
    )


def _places_json(places: Sequence[Product]) -> Any:
    """Return one number where no group changes it, else a list of products."""
    constant = sum((p.times for p in places), Fraction(0))
    return [_product_json(p) for p in places] if any(p.extents for p in places) else str(constant)


def _places(value: Any) -> tuple[Product, ...]:
    if isinstance(value, str):
        return (Product(extents=(), times=Fraction(value)),)
    return tuple(map(_product, value))


def _product_json(product: Product) -> list[Any]:
    return [[[e.size, dict(e.entries)] for e in product.extents], str(product.times)]


def _product(value: Sequence[Any]) -> Product:
    extents, times = value
    return Product(
        extents=tuple(Extent(size=size, entries=entries) for size, entries in extents),
        times=Fraction(times),
    )
