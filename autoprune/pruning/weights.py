"""Weights on disk: safetensors only, written whole, read without running any code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.files import file_digest, write_whole


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors; return the SHA-256 of the file."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = save(plain)
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; raise `AutopruneError` if it is missing, torn or altered."""
    try:
        if sha256 is not None and file_digest(path) != sha256:
            raise AutopruneError(
                f"{path} must have the checksum that was recorded for it, but has another one: "
                f"it was altered or cut short. Export it again."
            )
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise AutopruneError(
            f"{path} must be a safetensors file, but reading it gave {type(error).__name__}: "
            f"{error}."
        ) from error


def save_model(path: Path, model: nn.Module) -> str:
    """Write a model's state; return the SHA-256 of the file."""
    return save_tensors(path, model.state_dict())


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a dense checkpoint: safetensors, or what `torch.save` wrote, without running its code.

    A dictionary with a ``state_dict`` or ``model`` entry, as trainers write it, is unpacked.
    """
    if not path.is_file():
        raise AutopruneError(f"The checkpoint must be a file, but there is none at {path}.")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AutopruneError(
            f"The checkpoint {path} must hold tensors only (a state_dict), but reading it gave "
            f"{type(error).__name__}. Save `model.state_dict()`, best as safetensors."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise AutopruneError(
            f"The checkpoint {path} must hold a state_dict, but holds something else."
        )
    return dict(content)
