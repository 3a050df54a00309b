"""`autoprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoprune.commands.options import OutArgument, shown

EXAMPLES = (
    "Examples:  autoprune report autoprune-runs/digits --open  |  "
    "autoprune report autoprune-runs/digits --to digits.html"
)


def report(
    out: OutArgument,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to.  [default: OUT/report.html]")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a search on one page: which model to take, how it was made, how to load it.

    The page is one HTML file that needs no network.
    """
    from autoprune.results.report.page import write_report

    file = write_report(out, to)
    size = file.stat().st_size
    typer.echo(f"Wrote {shown(file)} ({max(size // 1024, 1):,} KB)")
    if open_it:
        import webbrowser

        webbrowser.open(file.as_uri())
