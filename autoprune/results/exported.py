"""An exported model's folder, and whether its files are what was exported. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.pruning.files import file_digest, read_signed
from autoprune.pruning.groups import module_of
from autoprune.pruning.plan import Plan

WEIGHTS, PLAN, METRICS = "model.safetensors", "plan.json", "metrics.json"
NAME = re.compile(r"\w[\w.-]{0,63}")
"""What an exported file may be called."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an exported plan says about its weights and the other files."""

    params: int
    sha256: str
    dropped: tuple[str, ...]
    """Modules that the model lacks."""
    zeroed: tuple[str, ...]
    """Parameters of which only what is not zero counts."""
    files: Mapping[str, str]
    """SHA-256 of the files of the other formats, by name."""


def read_plan(file: Path) -> Exported:
    """Read an exported ``plan.json``; raise `AutopruneError` if it was altered."""
    plan = read_signed(file, way_out="Export it again.")
    kept = Plan.from_json(plan).kept or {}
    return Exported(
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


def check_export(folder: Path) -> Exported:
    """Return what a folder's plan says; raise `AutopruneError` if a file is not what it names."""
    exported = read_plan(folder / PLAN)
    for name, digest in {WEIGHTS: exported.sha256, **exported.files}.items():
        if not (folder / name).exists():
            raise AutopruneError(
                f"{folder / name} must be there, as {PLAN} names it, but is missing. "
                f"Export it again."
            )
        check_file(folder / name, digest)
    return exported


def check_file(file: Path, digest: str) -> None:
    """Raise `AutopruneError` for an exported file that is there, but is another one."""
    if file.exists() and not (file.is_file() and file_digest(file) == digest):
        raise AutopruneError(
            f"{file} must have the checksum that was recorded for it, but has another one: "
            f"it was altered or cut short. Export it again."
        )
