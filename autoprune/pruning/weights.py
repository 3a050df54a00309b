"""Weights on disk: safetensors only, written whole, read without running any code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import check_regular, file_digest, write_whole

SEAL = "sealed"
"""Under which name a file's metadata has the checksum of all else that is in it."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors; return the SHA-256 of the file."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = save(plain)
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; raise `AutopruneError` if it is missing, torn or altered."""
    try:
        check_regular(path)
        if sha256 is not None and file_digest(path) != sha256:
            raise AutopruneError(
                f"{path} must have the checksum that was recorded for it, but has another one: "
                f"it was altered or cut short. Export it again."
            )
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise AutopruneError(
            f"{path} must be a safetensors file, but reading it gave {first_line(error)}."
        ) from error


def save_sealed(path: Path, tensors: Mapping[str, Tensor], text: str = "") -> None:
    """Write tensors and a text, whole, as one safetensors file that carries its own checksum."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # One entry: safetensors writes several in any order, and equal tensors are to be equal files.
    write_whole(path, save(plain, {SEAL: f"{_digest(plain, text)} {text}"}))


def load_sealed(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Read what `save_sealed` wrote; None if it is not there, or was altered or cut short."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as opened:
            digest, _, text = (opened.metadata() or {}).get(SEAL, "").partition(" ")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return (tensors, text) if digest == _digest(tensors, text) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


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
