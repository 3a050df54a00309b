"""What several commands take, and how they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyArgument = Annotated[
    str, typer.Argument(metavar="[STUDY]", help="A study file, or `digits`, the built-in one.")
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="A search's output folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def shown(path: Path) -> Path:
    """Return `path` relative to here if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
