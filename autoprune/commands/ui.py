"""`autoprune ui`."""

from __future__ import annotations

from typing import Annotated

import typer

from autoprune.commands.options import OutArgument

EXAMPLES = "Example:  autoprune ui autoprune-runs/digits --port 5001"


def ui(
    out: OutArgument,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on a search, on this machine alone."""
    from autoprune.results.store import Store
    from autoprune.results.ui import serve

    serve(Store(out), host=host, port=port)
