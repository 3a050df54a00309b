"""Bringing MLflow what a search could not: `autoprune sync`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoprune.errors import AutopruneError
from autoprune.pruning.files import read_json
from autoprune.redaction import redacted
from autoprune.results.delivery import Delivery
from autoprune.results.spool import LOCAL, Destination, Spool, load_destination
from autoprune.results.store import Store
from autoprune.results.tracking import connection

SCHEMES = ("http", "https", "file", "databricks", "sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What became of a delivery."""

    uri: str
    """Where to, without secrets."""
    total: int
    """How many records the search has."""
    delivered: int
    left: int
    problems: tuple[str, ...]


def sync(
    store: Store,
    *,
    uri: str | None,
    experiment: str | None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Synced:
    """Deliver the records in a search's folder that a server has not got yet.

    Parameters
    ----------
    uri, experiment
        Where to; None is where the latest search on the folder sent them.
    tell
        Is told how many of how many were delivered.

    Raises
    ------
    AutopruneError
        If the folder has no records, a search is writing to it, or the address is unknown.
    """
    if not store.spool.is_dir():
        raise AutopruneError(
            f"OUT must be the folder of a search that MLflow was told of, but {store.root} "
            f"holds no records."
        )
    check_uri(uri)
    identity = read_json(store.identity_file)
    latest = load_destination(store.spool)
    if uri is None and not latest.whole:
        raise AutopruneError(
            f"The tracking URI must be given, as it held a secret that was not stored: "
            f"add --tracking-uri to reach {latest.uri}."
        )
    if uri is None and latest.uri != LOCAL:
        uri = latest.uri
    experiment = experiment or latest.experiment
    with store.locked():
        destination = Destination.of(uri, experiment)
        spool = Spool(store.spool, destination)
        waiting = len(spool.pending())
        problems: list[str] = []
        if waiting:
            connect = connection(
                store, uri, experiment, search=identity["id"], name=identity["study"]
            )
            delivery = Delivery(spool, connect)
            problems = delivery.close(lambda left: tell(waiting - left, waiting))
        left = len(spool.pending())
    return Synced(
        uri=store.mlflow_database.name if uri is None else destination.uri,
        total=len(spool),
        delivered=waiting - left,
        left=left,
        problems=tuple(problems),
    )


def check_uri(uri: str | None) -> None:
    """Raise `AutopruneError` if MLflow has no use for a tracking URI, or if it is `none`."""
    if uri is None:
        return
    scheme = uri.partition(":")[0].partition("+")[0]
    host = uri.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]
    if scheme not in SCHEMES or (scheme in ("http", "https") and not host):
        raise AutopruneError(
            f"The tracking URI must be one of MLflow's, such as http://host:5000 or "
            f"sqlite:///file.db, but is {redacted(uri)!r}. Check --tracking-uri."
        )
