"""Loading an exported model into its own class: safetensors and JSON, no pickle."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.cut import load_state
from autoprune.pruning.files import read_signed
from autoprune.pruning.groups import module_of
from autoprune.pruning.masks import count_nonzero
from autoprune.pruning.plan import Plan
from autoprune.pruning.weights import file_digest, load_tensors

WEIGHTS, PLAN = "model.safetensors", "plan.json"
NAME = re.compile(r"\w[\w.-]{0,63}")
"""What an exported file may be called."""


def load(folder: str | Path, *, model: nn.Module) -> nn.Module:
    """Rebuild an exported model.

    Parameters
    ----------
    folder
        A folder that a search exported, such as ``out/front/t017``.
    model
        The dense model, trained or not. It gives the code; it is not changed.

    Returns
    -------
    nn.Module
        A smaller copy with the exported weights, in evaluation mode.

    Raises
    ------
    AutopruneError
        If files are missing or altered, or belong to another model.

    Examples
    --------
    >>> net = autoprune.load("out/front/t017", model=Net())  # doctest: +SKIP
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutopruneError(f"`folder` must be an exported model's folder, but {folder} is none.")
    exported = _read_plan(folder / PLAN)
    for name, digest in exported.files.items():
        _check_file(folder / name, digest)
    state = load_tensors(folder / WEIGHTS, sha256=exported.sha256)
    small = load_state(model, state, dropped=exported.dropped).eval()
    found = count_nonzero(small, exported.zeroed)
    if found != exported.params:
        raise AutopruneError(
            f"The loaded model must have the plan's {exported.params} parameters, but has {found}: "
            f"is this the right model?"
        )
    return small


@dataclass(frozen=True, kw_only=True)
class _Exported:
    """What an exported plan says about its weights."""

    params: int
    sha256: str
    dropped: tuple[str, ...]
    """Modules that the model lacks."""
    zeroed: tuple[str, ...]
    """Parameters of which only what is not zero counts."""
    files: Mapping[str, str]
    """SHA-256 of the files of the other formats, by name."""


def _check_file(file: Path, digest: str) -> None:
    """Raise `AutopruneError` for an exported file that is there, but is another one."""
    if file.exists() and not (file.is_file() and file_digest(file) == digest):
        raise AutopruneError(
            f"{file} must have the checksum that was recorded for it, but has another one: "
            f"it was altered or cut short. Export it again."
        )


def _read_plan(file: Path) -> _Exported:
    plan = read_signed(file, way_out="Export it again.")
    kept = Plan.from_json(plan).kept or {}
    return _Exported(
        params=_entry(file, plan, "params", "a whole number", lambda v: type(v) is int),
        sha256=_entry(file, plan, "sha256", "a text", lambda v: isinstance(v, str)),
        dropped=tuple(module_of(name) for name, channels in kept.items() if not channels),
        zeroed=tuple(_entry(file, plan, "zeroed", "a list of texts", _is_texts, [])),
        files=_entry(file, plan, "files", "a checksum for each file's name", _is_files, {}),
    )


def _entry(
    file: Path,
    plan: Mapping[str, Any],
    name: str,
    rule: str,
    holds: Callable[[Any], bool],
    default: Any = None,
) -> Any:
    """Return an entry of a plan; raise `AutopruneError` unless the rule holds for it."""
    value = plan.get(name, default)
    if not holds(value):
        raise AutopruneError(
            f"{file} must have {rule} as `{name}`, but has {str(value)[:80]!r}. Export it again."
        )
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_files(value: Any) -> bool:
    """Return whether it is texts by the names of files, none of which leads to another folder."""
    return isinstance(value, dict) and all(
        NAME.fullmatch(name) and isinstance(digest, str) for name, digest in value.items()
    )
