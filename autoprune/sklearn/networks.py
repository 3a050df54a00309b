"""The networks behind the estimators: the default one, and what a given one needs around it."""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from autoprune.sklearn.data import Shape

Build = Callable[[], nn.Module]
NARROWEST, WIDEST = 16, 512
"""Neurons in the second hidden layer of the default network."""


class _OfMoments(nn.Module):
    """Holds the mean and the standard deviation of each column, [columns], beside the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, *, mean: ArrayLike, scale: ArrayLike) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(np.asarray(mean, np.float32)))
        self.register_buffer("scale", torch.as_tensor(np.asarray(scale, np.float32)))


class Standardise(_OfMoments):
    """Gives each feature mean 0 and standard deviation 1, as it has them in the training data.

    >>> layer = Standardise(mean=[1.0, 2.0], scale=[0.5, 4.0])
    >>> layer(torch.tensor([[2.0, 2.0]]))
    tensor([[2., 0.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


class Rescale(_OfMoments):
    """Turns standardised answers into the targets' own units.

    >>> layer = Rescale(mean=[100.0], scale=[10.0])
    >>> layer(torch.tensor([[0.0], [1.5]])).tolist()
    [[100.0], [115.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.mean


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and standard deviation of each column; that of a constant one counts as 1."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, columns: NDArray[Any], weights: NDArray[Any] | None = None) -> Moments:
        """Take the moments of an array of shape [samples] or [samples, columns].

        >>> found = Moments.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> found.mean.tolist(), found.scale.tolist()
        ([2.0, 5.0], [1.0, 1.0])
        """
        values = columns.astype(np.float64).reshape(len(columns), -1)
        mean = np.average(values, axis=0, weights=weights)
        scale = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
        # Below this, float32 cannot tell the values apart.
        tiny = np.maximum(1e-7 * np.abs(mean), np.finfo(np.float32).tiny)
        return cls(mean=mean, scale=np.where(scale > tiny, scale, 1.0))

    @classmethod
    def unknown(cls, columns: int) -> Moments:
        """Return a place for moments that are read later."""
        return cls(mean=np.zeros(columns), scale=np.ones(columns))


def mlp(
    n_features: int, n_outputs: int, *, hidden: Sequence[int] = (64, 32), dropout: float = 0.2
) -> nn.Sequential:
    """Build a multi-layer perceptron: ``hidden`` layers of ReLUs between features and outputs.

    >>> mlp(30, 2, hidden=(16,))
    Sequential(
      (hidden1): Linear(in_features=30, out_features=16, bias=True)
      (relu1): ReLU()
      (dropout1): Dropout(p=0.2, inplace=False)
      (output): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = n_features
    for number, neurons in enumerate(hidden, start=1):
        layers[f"hidden{number}"] = nn.Linear(width, neurons)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        width = neurons
    layers["output"] = nn.Linear(width, n_outputs)
    return nn.Sequential(layers)


def hidden_for(n_samples: int) -> tuple[int, int]:
    """Return the neurons of two hidden layers that so many samples can teach.

    The second has the square root of the samples, to the nearest power of two, the first twice as
    many.

    >>> hidden_for(300), hidden_for(1_100), hidden_for(60_000)
    ((32, 16), (64, 32), (512, 256))
    """
    narrow = 2 ** round(math.log2(n_samples) / 2)
    narrow = min(max(narrow, NARROWEST), WIDEST)
    return 2 * narrow, narrow


@dataclass(frozen=True, kw_only=True)
class Network:
    """The dense network of a fit: how it is built, and how it is trained."""

    build: Build
    trained: bool
    """Whether it comes with weights that are worth keeping."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What the function that builds it is called with."""


def network_of(
    module: Any,
    params: Mapping[str, Any],
    shape: Shape,
    *,
    inputs: Moments,
    targets: Moments | None,
) -> Network:
    """Return the dense network that ``module`` stands for.

    Parameters
    ----------
    module
        None for the default one, a function (or class) that builds a module, or a module whose
        weights are kept.
    params
        Arguments of the function. `n_features` and `n_outputs` are added if it takes them.
    inputs, targets
        Moments of the training data; `targets` of a regression's, else None. The default network
        standardises what it reads; what is trained to regress answers in standardised units first.
    """
    if isinstance(module, nn.Module):
        if params:
            raise ValueError(
                "The 'module_params' parameter must be left out for a module that is built "
                "already, but has entries. Pass the function that builds it."
            )
        return Network(build=_Copies(module), trained=True)
    factory = module
    if module is None:
        factory, params = mlp, {"hidden": hidden_for(shape.n_samples), **params}
    build = _Built(
        factory=factory,
        params={**_sizes(factory, shape, params), **params},
        inputs=inputs if module is None else None,
        targets=targets,
    )
    return Network(build=build, trained=False, params=build.params)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Built:
    """Builds a network by a factory, and puts the layers around it that the data ask for."""

    factory: Callable[..., Any]
    params: Mapping[str, Any]
    inputs: Moments | None
    targets: Moments | None

    def __call__(self) -> Any:
        body = self.factory(**self.params)
        if not isinstance(body, nn.Module):
            return body  # the study says what is wrong with that
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if self.inputs is not None:
            parts["standardise"] = Standardise(mean=self.inputs.mean, scale=self.inputs.scale)
        parts["body"] = body
        if self.targets is not None:
            parts["rescale"] = Rescale(mean=self.targets.mean, scale=self.targets.scale)
        return body if len(parts) == 1 else nn.Sequential(parts)


class _Copies:
    """Builds copies of a module, weights included."""

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module).cpu()

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self._module)


def _sizes(factory: Callable[..., Any], shape: Shape, params: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of the data that a factory asks for by name."""
    try:
        asked = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    known = {"n_features": shape.n_features, "n_outputs": shape.n_outputs}
    return {name: size for name, size in known.items() if name in asked and name not in params}


def answers(model: nn.Module, inputs: NDArray[Any], *, block: int = 4096) -> NDArray[Any]:
    """Return what `model` says of [samples, features], some thousand samples at a time."""
    model.eval()
    with torch.inference_mode():
        parts = [model(torch.from_numpy(part)) for part in _blocks(inputs, block)]
    found: NDArray[Any] = torch.cat(parts).float().numpy()
    return found


def _blocks(inputs: NDArray[Any], block: int) -> list[NDArray[Any]]:
    whole = np.ascontiguousarray(inputs, np.float32)
    return [whole[start : start + block] for start in range(0, len(whole), block)]
