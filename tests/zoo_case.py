"""One architecture of the zoo: how it is built and called, and what must be found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from nets import noise_like
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A small network of one kind."""

    name: str
    factory: Callable[[], nn.Module]
    example: Any
    """A tensor, a tuple or a dict of tensors; two samples."""
    expected: Mapping[str, int | None]
    """By layer or bare parameter: channels of the one group that must produce it. None: one group
    or more must, of any size, because there are several right ways to couple its channels."""
    formats: tuple[str, ...] = ("pt2", "onnx")
    """What must be exported beside safetensors."""
    unexported: Mapping[str, str] = field(default_factory=dict)
    """Why another format cannot be."""
    options: Mapping[str, bool] = field(default_factory=dict)
    """What `find_groups` is asked for beside the usual."""
    tied: tuple[str, ...] = ()
    """Parameters that both produce and read channels, through one dimension."""
    needs: str | None = None
    """A package without which the network cannot be built."""

    @property
    def missing(self) -> bool:
        """Whether the package that it needs is not installed."""
        return self.needs is not None and find_spec(self.needs) is None

    def build(self) -> nn.Module:
        """Return the network in evaluation mode; the same weights every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.factory()
            unsettle(model)
        return model.eval()

    def inputs(self) -> Any:
        """Return noise like the example: numbers where that has numbers, ids where it has ids."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return _noise(self.example)


def _noise(example: Any) -> Any:
    if isinstance(example, dict):
        return {key: _noise(value) for key, value in example.items()}
    if isinstance(example, tuple):
        return tuple(_noise(value) for value in example)
    return noise_like(example) if example.is_floating_point() else example.clone()


def unsettle(model: nn.Module) -> None:
    """Draw the scales and shifts of norms: fresh ones would hide a cut at the wrong channels.

    Networks with trained weights are left as they are.
    """
    if getattr(model, "trained", False):
        return
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and parameter.unique().numel() == 1:
            nn.init.normal_(parameter, 0.5 if name.endswith("weight") else 0.0, 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, 0.0, 0.5)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)


def token_ids(samples: int, length: int, vocabulary: int) -> Tensor:
    """Return token ids [samples, length], the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (samples, length), generator=generator)
