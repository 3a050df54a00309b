"""What a Hugging Face config can say of a model's widths: found out from the model's own class.

Which attribute governs which tensors is not written down for each architecture: a model of a config
with one value changed is built, without memory for its weights, and compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.pruning.groups import ChannelGroup, Grouping

Places = frozenset[tuple[str, int]]
"""Dimensions of tensors."""
UNSET = ("inner", "intermediate", "ffn")
"""Parts of names of widths that a config may leave to the model to choose."""
HEADS = ("head", "d_kv", "kv_")
"""Parts of names of attributes that are never changed: fewer heads, and smaller ones, can come to
the same shapes."""


@dataclass(frozen=True, kw_only=True)
class Governed:
    """Groups that all have the width that one attribute of the config says."""

    attribute: str
    groups: tuple[ChannelGroup, ...]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by name, shared ones under each."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


def shapes_by(model: nn.Module, config: Any) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes that a model of this class has by a config; None if it cannot be built."""
    try:
        read = type(config).from_dict(config.to_dict())  # as it comes back from a file
        with torch.device("meta"):
            return shapes_of(type(model)(read))
    except Exception:  # whatever a model's code makes of a config that it does not like
        return None


def governed(model: nn.Module, grouping: Grouping) -> Iterator[Governed]:
    """Yield groups of a model that are as wide as one attribute of its config says.

    Only where that attribute governs nothing but those groups.
    """
    config: Any = model.config
    dense = shapes_by(model, config)
    widths = set(grouping.channels.values())
    for name, value in _attributes(config):
        if dense is None:
            return
        for width in sorted(widths if value is None else widths & {value}):
            changed = shapes_by(model, _with(config, {name: width - 1}))
            places = _smaller(dense, changed)
            groups = [g for g in grouping.groups if g.channels == width and _places(g) <= places]
            if groups and places == frozenset().union(*map(_places, groups)):
                yield Governed(attribute=name, groups=tuple(groups))
                break


def fitted(model: nn.Module) -> Any | None:
    """Return a config that says a cut model's shapes; None if there is none.

    Every attribute is tried that by its value may be what has changed: the result is proved by
    building a model of it.
    """
    config: Any = copy.deepcopy(model.config)
    own = shapes_of(model)
    dense = shapes_by(model, config)
    if dense is None or set(dense) != set(own):
        return None
    for _ in config.to_dict():
        if dense == own:
            return config
        found = _closer(model, config, dense, own)
        if found is None:
            return None
        config, dense = found
    return None


def _closer(
    model: nn.Module,
    config: Any,
    dense: Mapping[str, tuple[int, ...]],
    own: Mapping[str, tuple[int, ...]],
) -> tuple[Any, dict[str, tuple[int, ...]]] | None:
    """Return a config that gets more of the model's shapes right, by one attribute, and these."""
    changes = {(a, b) for n in own for a, b in zip(dense[n], own[n], strict=True) if a != b}
    wrong = sum(dense[n] != own[n] for n in own)
    for name, value in _attributes(config):
        for old, new in sorted(changes):
            if value is not None and value != old:
                continue
            other = _with(config, {name: new})
            shapes = shapes_by(model, other)
            if shapes and sum(shapes.get(n) != own[n] for n in own) < wrong:
                return other, shapes
    return None


def _attributes(config: Any) -> Iterator[tuple[str, int | None]]:
    """Yield what may be the width of something, by name; None for a width left to the model."""
    for name, value in config.to_dict().items():
        unset = value is None and any(part in name for part in UNSET)
        if (type(value) is int or unset) and not any(part in name for part in HEADS):
            yield name, value


def _with(config: Any, values: Mapping[str, Any]) -> Any:
    changed = copy.deepcopy(config)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def _smaller(one: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]] | None) -> Places:
    """Return the dimensions that have become smaller."""
    if other is None or set(one) != set(other):
        return frozenset()
    return frozenset(
        (name, dim)
        for name, shape in one.items()
        for dim, size in enumerate(shape)
        if len(other[name]) == len(shape) and other[name][dim] < size
    )


def _places(group: ChannelGroup) -> Places:
    return frozenset((piece.tensor, piece.dim) for piece in group.slices)
