"""Calling a model with whatever its inputs are, and reading tensors out of whatever it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def call(model: nn.Module, inputs: Any) -> Any:
    """Run `model` on `inputs`: a tensor, a tuple or list (positional) or a mapping (by keyword)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor in a nest of tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_of(item)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_of(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in tensors_of(getattr(value, f.name))]
    return []


def plain(value: Any) -> Any:
    """Turn what a model returns into dicts, tuples and lists, whatever classes it is made of.

    Entries that are None are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (tuple, list)):
        kind = list if isinstance(value, list) else tuple
        return kind(plain(item) for item in value if item is not None)
    return value


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `function` to every tensor of a nest, keeping the nest's shape."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def batch_size_of(inputs: Any) -> int:
    """Return the leading dimension of the first tensor of `inputs`, 1 when there is none."""
    tensors = tensors_of(inputs)
    return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1


def count_params(model: nn.Module) -> int:
    """Count the parameters of `model`, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def shared_names(model: nn.Module) -> dict[str, str]:
    """Return, for each further name of a shared parameter, its first name."""
    first: dict[int, str] = {}
    further: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            further[name] = known
    return further


def randomised(inputs: Any, seed: int = 0) -> Any:
    """Replace the floating tensors of `inputs` with standard normal noise of the same shape."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return map_tensors(noise, inputs)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch off torch's fused transformer layers, which ask for layers as they were built."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
