"""An exported model's folder, and whether its files are what was exported. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import AutopruneError
from autoprune.pruning.files import checksum, file_digest, read_json
from autoprune.pruning.groups import module_of
from autoprune.pruning.plan import Plan

WEIGHTS, PLAN, METRICS = "model.safetensors", "plan.json", "metrics.json"


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
    plan = read_json(file)
    if not isinstance(plan, dict) or plan.get("checksum") != checksum(plan):
        raise AutopruneError(
            f"{file} must be as autoprune exported it, but its checksum does not fit "
            f"its content: it was altered. Export it again."
        )
    params, digest = plan.get("params"), plan.get("sha256")
    if type(params) is not int or not isinstance(digest, str):
        raise AutopruneError(
            f"{file} must have `params`, a whole number, and `sha256`, a text, but has "
            f"{params!r} and {digest!r}. Export it again."
        )
    kept = Plan.from_json(plan).kept or {}
    return Exported(
        params=params,
        sha256=digest,
        dropped=tuple(module_of(name) for name, channels in kept.items() if not channels),
        zeroed=tuple(plan.get("zeroed", ())),
        files={Path(str(n)).name: str(d) for n, d in dict(plan.get("files", {})).items()},
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
    if file.exists() and file_digest(file) != digest:
        raise AutopruneError(
            f"{file} must have the checksum that was recorded for it, but has another one: "
            f"it was altered or cut short. Export it again."
        )
