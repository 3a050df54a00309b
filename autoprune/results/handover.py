"""Handing an exported model over: a copy whose files are what was exported. No torch here."""

from __future__ import annotations

import fnmatch
import shutil
import tempfile
from pathlib import Path

from autoprune.errors import AutopruneError
from autoprune.results.exported import METRICS, PLAN, check_export


def copy_export(source: Path, to: Path, *, overwrite: bool = False) -> bool:
    """Copy an exported model's folder, whole or not at all; return whether one was replaced.

    Every file is compared with its checksum, before and after.

    Raises
    ------
    AutopruneError
        If the export was altered, or `to` cannot be written or holds something else.
    """
    if not source.is_dir():
        raise AutopruneError(
            f"A front model must have its export, but there is no folder {source}. Run the same "
            f"`autoprune search` again to export it."
        )
    check_export(source)
    there = _check_target(to, overwrite=overwrite)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
            fresh = Path(folder) / "model"
            shutil.copytree(source, fresh)
            check_export(fresh)
            _swap(fresh, to, aside=Path(folder) / "old")
    except OSError as error:
        raise AutopruneError(
            f"`to` must be a folder that can be written, but {to} cannot: "
            f"{error.strerror or error}. Choose another place."
        ) from error
    return there


def _swap(fresh: Path, to: Path, *, aside: Path) -> None:
    """Put `fresh` in the place of `to`, which is there still if that fails."""
    if to.is_dir():
        to.rename(aside)
    try:
        fresh.rename(to)
    except OSError:
        if aside.is_dir():
            aside.rename(to)
        raise


def _check_target(to: Path, *, overwrite: bool) -> bool:
    """Return whether an earlier export is at `to`; raise if that, or anything else, must stay."""
    if to.exists() and not to.is_dir():
        raise AutopruneError(f"`to` must be a new folder, but {to} is a file. Choose another.")
    there = sorted(path.name for path in to.iterdir()) if to.is_dir() else []
    if not there:
        return False
    foreign = [name for name in there if not fnmatch.fnmatchcase(name, "model.*")]
    foreign = [name for name in foreign if name not in (PLAN, METRICS)]
    if foreign or PLAN not in there:
        raise AutopruneError(
            f"`to` must be a new folder or an earlier export, but {to} holds other files: "
            f"{(foreign or there)[0]}. Choose another."
        )
    if not overwrite:
        raise AutopruneError(
            f"`to` must be a new folder, but {to} holds an exported model. Choose another, or add "
            f"--overwrite to replace it."
        )
    return True
