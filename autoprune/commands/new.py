"""`autoprune new`."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from autoprune.errors import AutopruneError

EXAMPLES = "Example:  autoprune new my_study.py && autoprune search my_study.py --budget 20"


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study file to write.")],
) -> None:
    """Write a commented study file to start from. It runs as it is."""
    from autoprune.pruning.files import write_whole
    from autoprune.study import check_suffix, find_study_file

    check_suffix(file)
    if os.path.exists(file):
        raise AutopruneError(f"FILE must not exist yet, but {file} does. Choose another name.")
    text = find_study_file("starter").read_text()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:64] or "study"
    quoted = shlex.quote(str(file))
    in_docstring = quoted.replace("\\", r"\\").replace('"', r"\"")
    text = text.replace("starter.py", in_docstring).replace('"starter"', f'"{name}"')
    try:
        write_whole(file, text.encode())
    except OSError as error:
        raise AutopruneError(
            f"FILE must be in a folder that can be written, but {file} is not: {error.strerror}."
        ) from error
    typer.echo(f"Wrote {file}. Next: autoprune search {quoted} --budget 20")
