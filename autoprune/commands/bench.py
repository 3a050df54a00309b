"""`autoprune bench`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.commands.options import JsonOption, OutArgument, StudyOption, names

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLES = (
    "Examples:  autoprune bench autoprune-runs/digits  |  "
    "autoprune bench runs/mine --runtime onnx --batch-size 32 --threads 4"
)


def bench(
    out: OutArgument,
    runtime: Annotated[
        str, typer.Option(help="What runs the models: eager, compile, onnx.")
    ] = "eager,onnx",
    batch_size: Annotated[int, typer.Option(help="Samples in the batch.")] = 1,
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 1,
    study: StudyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the dense model and the models that a search found, in turns, and keep the figures.

    They go into front.json and to MLflow. Nothing else should run on the machine meanwhile.
    """
    from autoprune.benching import bench as run_bench

    done = run_bench(
        out,
        study=study,
        runtimes=names(runtime),
        batch_size=batch_size,
        threads=threads,
        tell=lambda name: typer.echo(f"Timing by {name} ...", err=True),
    )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(done.runs, indent=1))
        return
    for run in done.runs:
        _print(run)


def _print(run: Mapping[str, Any]) -> None:
    from autoprune.tables import print_table

    counts = {timed["runs"] for timed in run["models"].values()}
    typer.echo(
        f"\n{run['runtime']}, batch of {run['batch_size']}, {run['threads']} "
        f"{'thread' if run['threads'] == 1 else 'threads'}, {run['device']} "
        f"({run['cpu']}, {run['cores']} cores): median of {min(counts)} blocks in turns"
    )
    dense = run["models"]["dense"]["seconds"]
    rows = [
        (
            name,
            f"{1e3 * timed['seconds']:.4g} ms",
            f"{1e3 * timed['spread']:.2g} ms",
            f"{timed['seconds'] / dense:.0%}",
            f"{run['batch_size'] / timed['seconds']:,.0f}/s",
        )
        for name, timed in run["models"].items()
    ]
    print_table(["model", "median", "quartiles apart", "of dense", "samples"], rows)
