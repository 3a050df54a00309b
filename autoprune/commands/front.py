"""`autoprune front`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from autoprune.commands.options import JsonOption, OutArgument
from autoprune.errors import AutopruneError

EXAMPLES = (
    "Examples:  autoprune front autoprune-runs/digits --max-params 10000  |  "
    "autoprune front autoprune-runs/digits --min-accuracy 0.98 --json"
)


def front(
    out: OutArgument,
    max_params: Annotated[int | None, typer.Option(help="Only models this small.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Only models this good on validation.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the models that a search found."""
    from dataclasses import asdict, replace

    from autoprune.results.result import open_result

    result = open_result(out)
    within = result.within(max_params=max_params, min_accuracy=min_accuracy)
    if not within:
        raise AutopruneError(result.nothing_within(max_params, min_accuracy))
    if as_json:
        value = {
            "study": result.study,
            "metric": result.metric,
            "dense": asdict(result.dense),
            "front": [asdict(m) for m in within],
        }
        typer.echo(json.dumps(value, indent=1))
        return
    from autoprune.tables import print_front

    print_front(replace(result, front=within))
