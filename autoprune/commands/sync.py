"""`autoprune sync`."""

from __future__ import annotations

from typing import Annotated

import typer

from autoprune.commands.options import OutArgument
from autoprune.redaction import redacted

EXAMPLES = (
    "Examples:  autoprune sync autoprune-runs/digits  |  "
    "autoprune sync runs/mine --tracking-uri http://mlflow.example:5000"
)


def sync(
    out: OutArgument,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow tracking URI.  [default: where the search sent its records]"),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow experiment.  [default: the search's]")
    ] = None,
) -> None:
    """Bring MLflow the records that a search could not deliver.

    Doing it twice is harmless. Exit code 1 says that some are still waiting.
    """
    from autoprune.results.store import Store
    from autoprune.results.sync import sync as run_sync
    from autoprune.terminal import delivery_progress

    with delivery_progress() as tell:
        done = run_sync(Store(out), uri=tracking_uri, experiment=experiment, tell=tell)
    for problem in done.problems:
        typer.echo(f"note: {redacted(problem)}", err=True)
    if done.left:
        typer.echo(
            f"autoprune: {done.left} of {done.total} records are still to be delivered to "
            f"{done.uri}. Run the same command again.",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"Delivered {done.delivered} records; {done.uri} has all {done.total}.")
