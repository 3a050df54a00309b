"""`autoprune check`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.commands.options import JsonOption, OutArgument, shown
from autoprune.errors import AutopruneError

if TYPE_CHECKING:
    from autoprune.results.checking import Checked

EXAMPLES = (
    "Examples:  autoprune check runs/new --against knee.json --max-loss 1  |  "
    "autoprune check runs/new --against runs/last-week --max-growth 10  |  "
    "autoprune check runs/new --against knee.json --update"
)


class Choice(StrEnum):
    knee = "knee"
    best = "best"
    smallest = "smallest"


def check(
    out: OutArgument,
    against: Annotated[
        Path,
        typer.Option(metavar="OUT|FILE", help="What it is compared with: a search, or a file."),
    ],
    choose: Annotated[Choice, typer.Option(help="Which model of the front.")] = Choice.knee,
    max_loss: Annotated[
        str, typer.Option(metavar="POINTS", help="By how much the score may be worse, e.g. 1.")
    ] = "0",
    max_growth: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help="By how much the model may be larger, e.g. 10."),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Write this model to FILE if that is new, or the score is no worse at all "
            "and, with --max-growth, the model no larger.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fail, with exit code 1, if the model to pick is worse than the one before."""
    from autoprune.results import checking

    if update and against.is_dir():
        raise AutopruneError("`--update` must come with a file, but --against is a folder.")
    if update and not against.exists():
        record = checking.remember(out, against, choose=choose.value)
        if as_json:
            typer.echo(json.dumps({"passed": True, "now": record.to_json()}, indent=1))
        else:
            typer.echo(f"Nothing to compare with yet: wrote {shown(against)}.")
        return
    found = checking.check(
        out, against=against, choose=choose.value, max_loss=max_loss, max_growth=max_growth
    )
    if update and found.sets_standard:
        checking.keep(found.now, against)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        typer.echo("\n".join(found.problems or [_all_well(found)]))
    if not found.passed:
        raise typer.Exit(1)


def _all_well(found: Checked) -> str:
    now = found.now
    return (
        f"The {now.choice} is no worse: {now.model.params:,} parameters "
        f"({_signed(found.growth, 1)} %), {now.metric} {now.model.valid:.4f} "
        f"({_signed(-found.loss, 2)} points)."
    )


def _signed(value: float, digits: int) -> str:
    """Write a number with its sign; what rounds to nothing is no loss.

    >>> _signed(-0.0004, 2), _signed(-0.4, 2)
    ('+0.00', '-0.40')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}"
