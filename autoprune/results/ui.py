"""The MLflow UI on a search's own database."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

from autoprune.errors import AutopruneError
from autoprune.results.mlflow_database import database_url
from autoprune.results.mlflow_view import VIEW_TAG, view_path
from autoprune.results.store import Store

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""A UI to look at runs needs none of the processes that MLflow starts for jobs."""

PORTS = 2**16
"""How many ports an address has."""


def serve(store: Store, *, host: str, port: int) -> None:
    """Run the MLflow UI until it is stopped.

    Raises
    ------
    AutopruneError
        If the folder has no MLflow database, or there is no such port or it is taken.
    """
    if not 1 <= port < PORTS:
        raise AutopruneError(
            f"The port must be a whole number, 1 <= port < {PORTS}, but is {port}. "
            f"Choose another with --port."
        )
    if not store.mlflow_database.exists():
        raise AutopruneError(
            f"OUT must be a search's folder with its own MLflow database, but {store.root} has "
            f"none. With --tracking-uri, open that server instead."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AutopruneError(
                f"The port must be free on {host}, but {port} is not ({error.strerror}). "
                f"Choose another with --port."
            ) from error
    command = [
        sys.executable, "-m", "mlflow", "ui",
        "--backend-store-uri", database_url(store.mlflow_database),
        "--default-artifact-root", store.mlflow_artifacts.as_uri(),
        "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    print(f"MLflow on http://{host}:{port}{_page(store)} (Ctrl-C ends it)", flush=True)
    # Ctrl-C is for us: the server, which consists of several processes, would show tracebacks.
    process = subprocess.Popen(command, env=os.environ | QUIET, start_new_session=True)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        return
    if code != 0:
        raise AutopruneError(f"The MLflow UI ended with exit code {code}.")


def _page(store: Store) -> str:
    """Return the page of the search's experiment; nothing if it was made without a view of ours."""
    with closing(
        sqlite3.connect(f"{store.mlflow_database.as_uri()}?mode=ro", uri=True)
    ) as database:
        query = "SELECT experiment_id FROM experiment_tags WHERE key = ?"
        found = database.execute(query, [VIEW_TAG]).fetchone()
    return "" if found is None else view_path(str(found[0]))
