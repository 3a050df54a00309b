"""What several commands take, and how they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyArgument = Annotated[
    str, typer.Argument(metavar="[STUDY]", help="A study file, or `digits`, the built-in one.")
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="A search's output folder.")]
StudyOption = Annotated[
    str | None,
    typer.Option(
        metavar="STUDY", help="The study that was searched.  [default: what the search ran]"
    ),
]
MaxParamsOption = Annotated[
    str | None, typer.Option(metavar="N", help="Only models this small, e.g. 50k or 1.5M.")
]
MinAccuracyOption = Annotated[
    str | None,
    typer.Option(metavar="SCORE", help="Only models this good on validation, e.g. 0.98, 98%."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def names(text: str) -> list[str]:
    """Return the names of a list with commas.

    >>> names("taylor, l2,")
    ['taylor', 'l2']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def shown(path: Path) -> Path:
    """Return `path` relative to here if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
