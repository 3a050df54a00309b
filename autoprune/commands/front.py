"""`autoprune front`."""

from __future__ import annotations

import json

import typer

from autoprune.commands.options import JsonOption, MaxParamsOption, MinAccuracyOption, OutArgument
from autoprune.errors import AutopruneError

EXAMPLES = (
    "Examples:  autoprune front autoprune-runs/digits --max-params 10k  |  "
    "autoprune front autoprune-runs/digits --min-accuracy 0.98 --json"
)


def front(
    out: OutArgument,
    max_params: MaxParamsOption = None,
    min_accuracy: MinAccuracyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the models that a search found."""
    from dataclasses import asdict, replace

    from autoprune.results import units
    from autoprune.results.result import open_result

    most = None if max_params is None else units.count("max_params", max_params)
    least = None if min_accuracy is None else units.share("min_accuracy", min_accuracy)
    result = open_result(out)
    within = result.within(max_params=most, min_accuracy=least)
    if not within:
        raise AutopruneError(result.nothing_within(most, least))
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
