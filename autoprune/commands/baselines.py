"""`autoprune baselines`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.commands.options import JsonOption, OutArgument, StudyOption

if TYPE_CHECKING:
    from autoprune.uniform import Baselines

EXAMPLES = (
    "Examples:  autoprune baselines autoprune-runs/digits  |  "
    "autoprune baselines runs/mine --sizes 8 --workers 2"
)


def baselines(
    out: OutArgument,
    sizes: Annotated[int, typer.Option(help="How many sizes, from the front's.")] = 5,
    workers: Annotated[
        str, typer.Option(help="Worker processes; `auto` is one per core or GPU.")
    ] = "auto",
    study: StudyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train uniformly pruned models by the front's recipes, to see what the search was worth.

    They are kept in front.json. The same command again trains what is not there yet.
    """
    from autoprune.terminal import reporter_for
    from autoprune.uniform import baselines as train

    with reporter_for(quiet=as_json) as reporter:
        done = train(
            out,
            study=study,
            sizes=sizes,
            workers=int(workers) if workers.lstrip("-").isdigit() else workers,
            reporter=reporter,
        )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(done.models, indent=1))
        return
    _print(out, done)


def _print(out: Path, done: Baselines) -> None:
    from autoprune.results.comparing import best_within
    from autoprune.results.result import open_result
    from autoprune.tables import print_table

    result = open_result(out)
    sign = 1 if result.higher_is_better else -1
    rows = []
    for model in done.models:
        best = best_within(result, model["size"])
        rows.append(
            (
                model["name"],
                f"{model['params']:,}",
                f"{model['valid']:.4f}",
                "-" if model["test"] is None else f"{model['test']:.4f}",
                str(model["epochs"]),
                "-" if best is None else f"{best.valid:.4f} ({best.name})",
                "-" if best is None else f"{sign * (best.valid - model['valid']) + 0.0:+.4f}",
            )
        )
    valid = f"{result.metric} valid"
    print_table(["model", "params", valid, "test", "epochs", "front, no larger", "gain"], rows)
    typer.echo(f"\nTrained now: {done.trained} of {len(done.models)}. They are in front.json.")
