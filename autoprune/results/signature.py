"""What a model takes and returns, in JSON, and as MLflow's signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.pruning.forward import batch_size_of, call, map_tensors, tensors_of

Spec = tuple[str, str, list[int]]
"""Name, dtype and shape of a tensor; -1 is a free dimension."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a model takes and returns."""

    plain: bool
    """Whether it takes one tensor and returns one, as MLflow's PyTorch flavour serves it. Several
    tensors go by name, for the ONNX flavour."""
    inputs: list[Spec]
    outputs: list[Spec]


def named_inputs(example: Any) -> dict[str, Tensor] | None:
    """Return a model's example inputs by name; None for a tuple or a deeper nest."""
    example = map_tensors(lambda t: t.detach().cpu(), example)
    if isinstance(example, Tensor):
        return {"input": example}
    if isinstance(example, Mapping) and all(isinstance(v, Tensor) for v in example.values()):
        return {str(name): tensor for name, tensor in example.items()}
    return None


def describe(example: Any, model: nn.Module) -> Described | None:
    """Describe a model by what it makes of `example`, the first dimension left free.

    None for a nest of inputs that has no signature in MLflow.
    """
    named = named_inputs(example)
    if named is None:
        return None
    example = map_tensors(lambda t: t.detach().cpu(), example)
    with torch.no_grad():
        outputs = call(model, example)
    batch = batch_size_of(example)

    def spec(name: str, tensor: Tensor) -> Spec:
        shape = list(tensor.shape)
        free = bool(shape) and shape[0] == batch
        return name, str(tensor.numpy().dtype), [-1, *shape[1:]] if free else shape

    return Described(
        plain=isinstance(example, Tensor) and isinstance(outputs, Tensor),
        inputs=[spec(name, tensor) for name, tensor in named.items()],
        outputs=[spec(f"output_{i}", tensor) for i, tensor in enumerate(tensors_of(outputs))],
    )


def mlflow_signature(described: Described) -> Any:
    """Return the description as an `mlflow.models.ModelSignature`."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(specs: list[Spec]) -> Any:
        return Schema(
            [
                TensorSpec(np.dtype(dtype), tuple(shape), name=None if described.plain else name)
                for name, dtype, shape in specs
            ]
        )

    return ModelSignature(schema(described.inputs), schema(described.outputs))
