"""A model as a program that runs without its class: `torch.export`, ONNX, and example inputs."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from autoprune.pruning.forward import batch_size_of, call, map_tensors, plain, tensors_of


def export_program(
    model: nn.Module, example: Any, *, dynamic: bool
) -> torch.export.ExportedProgram:
    """Trace `model` on `example`, with the batch dimension left free if `dynamic`."""
    batch = batch_size_of(example)

    def free(tensor: Tensor) -> Any:
        return {0: Dim.AUTO} if tensor.dim() and tensor.shape[0] == batch else None

    shapes = _shapes(free, example) if dynamic else None
    args, kwargs = _arguments(example)
    model = _plainly_answering(model, example)
    if shapes is not None and not isinstance(example, (Mapping, tuple, list)):
        shapes = (shapes,)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


class _Plain(nn.Module):
    """Returns what a model does as dicts and tuples: programs load without its own classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(model(*args, **kwargs))

        # Which shapes are free is told by the names of the arguments: they stay the model's own.
        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward


def _plainly_answering(model: nn.Module, example: Any) -> nn.Module:
    with torch.no_grad():
        answer = call(model, example)
    return model if _is_plain(answer) else _Plain(model)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(_is_plain(v) for v in value.values())
    if isinstance(value, (tuple, list)):
        return type(value) in (tuple, list) and all(_is_plain(v) for v in value)
    return isinstance(value, Tensor)


def _shapes(free: Any, example: Any) -> Any:
    if isinstance(example, Mapping):
        return {key: _shapes(free, item) for key, item in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(_shapes(free, item) for item in example)
    return free(example) if isinstance(example, Tensor) else None


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def at_batch(example: Any, size: int) -> Any:
    """Repeat or cut the example along the batch dimension to `size` samples."""
    batch = batch_size_of(example)

    def resized(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % batch]

    return map_tensors(resized, example)


def save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write an exported program as an ONNX file."""
    # The exporter warns once per torchvision operator that is not installed: nobody's concern.
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
            assert exported is not None
            exported.save(path)
    finally:
        quiet.setLevel(level)


def check_onnx(path: Path, example: Any) -> None:
    """Raise what ONNX Runtime raises where it cannot run a file on `example`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    session.run(None, dict(zip(names, (t.numpy() for t in tensors_of(example)), strict=True)))
