"""`autoprune sensitivity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.commands.options import JsonOption, StudyArgument, names
from autoprune.errors import AutopruneError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLES = (
    "Examples:  autoprune sensitivity my_study.py  |  "
    "autoprune sensitivity digits --criterion l2 --fractions 0.5,0.25 --to hurts.png"
)
PICTURES = (".png", ".html")


def sensitivity(
    study: StudyArgument = "digits",
    out: Annotated[
        Path | None,
        typer.Option(help="Its search's folder.  [default: autoprune-runs/<study name>]"),
    ] = None,
    criterion: Annotated[str, typer.Option(help="What chooses the channels that stay.")] = "taylor",
    fractions: Annotated[
        str, typer.Option(help="Shares of a group's channels to leave.")
    ] = "0.75,0.5,0.25,0.125",
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it, to a .png or .html file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which channel groups hurt: each cut alone, without training.

    The dense model is that of the search in OUT, or is prepared first and kept in OUT/cache.
    """
    from autoprune.sensing import sensitivity as find_out
    from autoprune.terminal import reporter_for

    if to is not None:
        _check_picture(to)
    with reporter_for(quiet=as_json) as reporter:
        found = find_out(
            study, out=out, criterion=criterion, fractions=_shares(fractions), reporter=reporter
        )
    if to is not None:
        _draw(found, to)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    _print(found)
    if to is not None:
        typer.echo(f"Drawn to {to}.")


def _shares(text: str) -> list[float]:
    try:
        return [float(name) for name in names(text)]
    except ValueError as error:
        raise AutopruneError(
            f"`--fractions` must be numbers such as 0.5,0.25, but is {text!r}."
        ) from error


def _check_picture(to: Path) -> None:
    if to.suffix not in PICTURES:
        raise AutopruneError(f"`--to` must end in {' or '.join(PICTURES)}, but is {str(to)!r}.")
    if not to.parent.is_dir():
        raise AutopruneError(
            f"`--to` must be in a folder that is there, but {str(to.parent)!r} is not."
        )


def _draw(found: Mapping[str, Any], to: Path) -> None:
    from autoprune.results.figures import sensitivity_figure, sensitivity_picture

    try:
        if to.suffix == ".png":
            sensitivity_picture(found, to)
        else:
            sensitivity_figure(found).write_html(to, include_plotlyjs=True)
    except OSError as error:
        raise AutopruneError(
            f"`--to` must be a file that can be written, but {to} cannot: "
            f"{error.strerror or error}."
        ) from error


def _print(found: Mapping[str, Any]) -> None:
    from autoprune.results.sensitivities import by_harm, loss_table
    from autoprune.tables import print_table

    table = loss_table(found)
    widths = {group["name"]: str(group["channels"]) for group in found["groups"]}
    rows = [
        (
            name,
            widths[name],
            *("" if value is None else f"{round(value, 4) + 0.0:.4f}" for value in lost),
        )
        for name, lost in zip(table.groups, table.lost, strict=True)
    ]
    print_table(["channel group", "channels", *(f"{c}" for c in table.columns)], rows)
    order = by_harm(table)
    few = min(max(len(order) // 2, 1), 3)
    dense = found["dense"]["score"]
    typer.echo(
        f"\nWhat is lost of the dense model's {found['metric']} of {dense:.4f} when a group keeps "
        f"so many of its channels, chosen by {found['criterion']}.\n"
        f"Hurts most: {', '.join(order[:few])}. Hurts least: {', '.join(order[::-1][:few])}."
    )
