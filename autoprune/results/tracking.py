"""Tracking: a projection of the study for people to look at, never the truth, never in the way.

Records are written to the spool on disk, and brought from there to MLflow by a background thread,
which has the only client there is. If the server is away, the search goes on, and the records
wait: for the server, for the next search on the folder, or for `autoprune sync`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autoprune.errors import first_line
from autoprune.pruning.files import write_whole
from autoprune.results.delivery import Connect, Delivery, Server
from autoprune.results.mlflow_database import database_url, make_database
from autoprune.results.mlflow_logged import signature_json
from autoprune.results.mlflow_runs import MlflowRuns
from autoprune.results.records import (
    FinishRecord,
    FrontModel,
    FrontRecord,
    ModelEntry,
    Overview,
    RunStatus,
    StartRecord,
    TrialRecord,
)
from autoprune.results.signature import describe, named_inputs
from autoprune.results.spool import Destination, Spool, save_destination
from autoprune.results.store import Store

EXAMPLE = "example.safetensors"
"""The study's example inputs, which go with its models."""


class Tracker(Protocol):
    """Where a search is recorded for people to look at."""

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the search's parent run."""
        ...

    def dense(self, record: TrialRecord) -> None:
        """Record the dense model."""
        ...

    def trial(self, record: TrialRecord) -> None:
        """Keep the record of a trial that is about to end, until `ended` or `settle`."""
        ...

    def ended(self, key: str) -> None:
        """Record that trial: the study knows now that it has ended."""
        ...

    def settle(self, ended: Collection[tuple[str, str]]) -> None:
        """Record what an earlier process kept of trials that have ended; forget the rest.

        `ended` has the key and the state of every ended trial.
        """
        ...

    def front(
        self, models: Sequence[FrontModel], files: Sequence[Path], overview: Overview
    ) -> None:
        """Mark the front, log its models, and attach files to the parent run."""
        ...

    def finish(self, metrics: Mapping[str, float], *, status: RunStatus) -> list[str]:
        """Close the parent run; return what is not recorded yet, and why, one line each."""
        ...


class NullTracker:
    """Records nothing."""

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None: ...

    def dense(self, record: TrialRecord) -> None: ...

    def trial(self, record: TrialRecord) -> None: ...

    def ended(self, key: str) -> None: ...

    def settle(self, ended: Collection[tuple[str, str]]) -> None: ...

    def front(
        self, models: Sequence[FrontModel], files: Sequence[Path], overview: Overview
    ) -> None: ...

    def finish(self, metrics: Mapping[str, float], *, status: RunStatus) -> list[str]:
        return []


class MlflowTracker:
    """Records in MLflow, by way of the spool in the search's folder.

    Parameters
    ----------
    store
        The search's folder, which this process has locked.
    uri
        Tracking URI; None is a database in the folder.
    search, name
        The search's id and name.
    """

    def __init__(
        self, store: Store, *, uri: str | None, experiment: str, search: str, name: str
    ) -> None:
        self._store = store
        destination = Destination.of(uri, experiment)
        save_destination(store.spool, destination)
        self._destination = destination
        self._spool = Spool(store.spool, destination)
        self._held: dict[str, int] = {}
        self._problems: list[str] = []
        self._delivery = Delivery(
            self._spool, connection(store, uri, experiment, search=search, name=name)
        )

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self._spool.write(StartRecord(params=params, tags=tags, time=time.time()))
        self._delivery.wake()

    def dense(self, record: TrialRecord) -> None:
        self._spool.write(record)
        self._delivery.wake()

    def trial(self, record: TrialRecord) -> None:
        self._held[record.key] = self._spool.hold(record)

    def ended(self, key: str) -> None:
        self._spool.release(self._held.pop(key))
        self._delivery.wake()

    def settle(self, ended: Collection[tuple[str, str]]) -> None:
        self._spool.settle(ended)
        self._delivery.wake()

    def front(
        self, models: Sequence[FrontModel], files: Sequence[Path], overview: Overview
    ) -> None:
        entries = [self._entry(model) for model in models]
        names = [self._inside(file) for file in files]
        self._spool.write(
            FrontRecord(models=entries, files=names, overview=overview, time=time.time())
        )
        self._delivery.wake()

    def finish(self, metrics: Mapping[str, float], *, status: RunStatus) -> list[str]:
        self._spool.write(FinishRecord(metrics=metrics, status=status, time=time.time()))
        self._problems += self._delivery.close()
        left = len(self._spool.pending())
        if left:
            self._problems.append(left_over(left, self._store.root, self._destination))
        return self._problems

    def _entry(self, model: FrontModel) -> ModelEntry:
        folder = self._inside(model.folder)
        try:
            signature = self._signature(model)
        except Exception as error:
            self._problems.append(f"{folder} has no signature for MLflow: {first_line(error)}")
            signature = None
        return ModelEntry(
            key=model.key,
            folder=folder,
            metrics=model.metrics,
            signature=signature,
            about=model.about,
        )

    def _signature(self, model: FrontModel) -> dict[str, Any] | None:
        from safetensors.numpy import save

        named = named_inputs(model.example)
        if named is None:
            return None
        arrays = {name: tensor.contiguous().numpy() for name, tensor in named.items()}
        file = self._store.spool / EXAMPLE
        write_whole(file, save(arrays))
        return signature_json(describe(model.example, model.module()), self._inside(file))

    def _inside(self, path: Path) -> str:
        return str(path.relative_to(self._store.root))


def connection(
    store: Store, uri: str | None, experiment: str, *, search: str, name: str
) -> Connect:
    """Return what opens MLflow for a search; `uri` None is the database in its folder."""

    def connect(on_step: Any) -> Server:
        if uri is None:
            make_database(store.mlflow_database)
        return MlflowRuns(
            uri if uri is not None else database_url(store.mlflow_database),
            experiment,
            search=search,
            name=name,
            root=store.root,
            artifacts=store.mlflow_artifacts if uri is None else None,
            on_step=on_step,
        )

    return connect


def left_over(count: int, out: Path, destination: Destination) -> str:
    """Say in one line what is still in the spool, and how it gets to MLflow."""
    where = "" if destination.whole else " --tracking-uri ..."
    records = "1 record for MLflow is" if count == 1 else f"{count} records for MLflow are"
    return (
        f"{records} still in {out / 'spool'}: `autoprune sync {shlex.quote(str(out))}{where}` "
        f"delivers what is there, and so does the next search on this folder."
    )
