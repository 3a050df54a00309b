"""A model's MLflow signature and input example, from its example input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.pruning.forward import batch_size_of, call, map_tensors, tensors_of


def describe(example: Any, model: nn.Module) -> tuple[Any, Any, bool] | None:
    """Return (signature, input example, plain), the first dimension left free.

    `plain` says that the model takes one tensor and returns one, as MLflow's PyTorch flavour
    serves it. Several tensors go by name, for the ONNX flavour; a nest deeper than a dict or tuple
    of tensors has no signature in MLflow: None.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = map_tensors(lambda t: t.detach().cpu(), example)
    with torch.no_grad():
        outputs = call(model, example)
    batch = batch_size_of(example)

    def spec(tensor: Tensor, name: str | None) -> Any:
        array = tensor.numpy()
        free = tensor.dim() and tensor.shape[0] == batch
        shape = (-1 if free else array.shape[0], *array.shape[1:]) if array.ndim else ()
        return TensorSpec(np.dtype(array.dtype), shape, name=name)

    if isinstance(example, Tensor) and isinstance(outputs, Tensor):
        signature = ModelSignature(Schema([spec(example, None)]), Schema([spec(outputs, None)]))
        return signature, example.numpy(), True
    if isinstance(example, Mapping) and all(isinstance(v, Tensor) for v in example.values()):
        named = {str(name): tensor for name, tensor in example.items()}
    elif isinstance(example, Tensor):
        named = {"input": example}
    else:
        return None
    answers = tensors_of(outputs)
    signature = ModelSignature(
        Schema([spec(tensor, name) for name, tensor in named.items()]),
        Schema([spec(tensor, f"output_{i}") for i, tensor in enumerate(answers)]),
    )
    return signature, {name: tensor.numpy() for name, tensor in named.items()}, False
