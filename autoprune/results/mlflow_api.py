"""MLflow, as one search uses it: its runs are found or made, and written to, once.

Everything here may be done again, after half of it was done: runs and points of metrics that are
there already are found, and not made twice.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.results.mlflow_view import VIEW_TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

SEARCH_TAG, TRIAL_TAG = "autoprune.search", "autoprune.trial"
VALUE_LIMIT = 5_000
"""Longest value that is logged as a tag or parameter, in characters."""
BATCH = 100
"""Most parameters, metrics or tags that are sent at once."""
REQUEST_SECONDS = 20
"""Longest that one request may take, if the environment does not say otherwise."""


class SearchApi:
    """Finds or creates the runs of one search and writes to them.

    Parameters
    ----------
    uri
        Tracking URI.
    search, name
        The search's id, which its runs are found by, and the name of its own run.
    artifacts
        Where a new experiment keeps its files; None leaves that to the server.
    on_step
        Is called whenever the server has answered. What it raises ends the delivery.

    Attributes
    ----------
    client, experiment, search
        MLflow's client, and the ids of the experiment and of the search.
    runs
        The runs' ids by trial, the search's own under ''.
    old
        Runs that may have some of what is to be written already.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        search: str,
        name: str,
        artifacts: Path | None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.client = client_of(uri)
        self.step = on_step
        self.search = search
        self._name = name
        self.experiment = self._experiment_id(experiment, artifacts)
        self.runs = self._known_runs()
        self.old = set(self.runs.values())

    def is_alive(self) -> bool:
        """Ask the server something easy."""
        try:
            self.client.get_experiment(self.experiment)
        except Exception:
            return False
        return True

    def _experiment_id(self, name: str, artifacts: Path | None) -> str:
        found = self.client.get_experiment_by_name(name)
        self.step()
        if found is not None:
            return str(found.experiment_id)
        location = artifacts.resolve().as_uri() if artifacts is not None else None
        made = self.client.create_experiment(name, artifact_location=location, tags=VIEW_TAGS)
        return str(made)

    def found(self, more: str = "") -> list[Run]:
        """Return the runs of this search, or those of them that `more` is true of."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                filter_string=f"tags.`{SEARCH_TAG}` = '{self.search}'{more}",
                page_token=token,
            )
            self.step()
            runs += page
            token = page.token
            if not token:
                return runs

    def _known_runs(self) -> dict[str, str]:
        """Return the runs' ids by trial, the search's own under ''.

        A request to create a run may be carried out after we have given up waiting for it and
        made another. Such an empty twin is deleted.
        """
        known: dict[str, str] = {}
        for run in sorted(self.found(), key=_content):
            key = run.data.tags.get(TRIAL_TAG, "")
            if key in known:
                self.client.delete_run(run.info.run_id)
            known.setdefault(key, run.info.run_id)
        return known

    def parent(self, started: float) -> str:
        return self.runs.get("") or self.create("", self._name, {}, started=started)

    def create(self, key: str, name: str, tags: Mapping[str, str], *, started: float) -> str:
        run = self.client.create_run(
            self.experiment,
            start_time=milliseconds(started),
            run_name=name,
            tags={SEARCH_TAG: self.search, **tags},
        )
        self.runs[key] = str(run.info.run_id)
        self.step()
        return self.runs[key]

    def log(
        self,
        run: str,
        *,
        time: float,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[float]] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        from mlflow.entities import Param, RunTag

        points = points_of(curves or {}, metrics or {}, time=time, step=step)
        entries = [Param(key_of(n), str(v)[:VALUE_LIMIT]) for n, v in (params or {}).items()]
        labels = [RunTag(key_of(n), str(v)[:VALUE_LIMIT]) for n, v in (tags or {}).items()]
        if run in self.old:
            data = self.client.get_run(run).data
            entries = [entry for entry in entries if entry.key not in data.params]
            points = self._missing(run, points, known=data.metrics, curves=curves or {})
        for start in range(0, max(len(entries), len(labels), len(points)), BATCH):
            part = slice(start, start + BATCH)
            self.client.log_batch(run, points[part], entries[part], labels[part])
            self.step()

    def _missing(
        self,
        run: str,
        points: Sequence[Metric],
        *,
        known: Mapping[str, float],
        curves: Mapping[str, Sequence[float]],
    ) -> list[Metric]:
        """Return the points that a run has not got yet.

        A point of a curve is told by its step and value alone: a trial that was interrupted and
        gone on with is recorded twice, at different times.
        """
        timeless = {key_of(name) for name in curves}

        def identity(point: Metric) -> tuple[object, ...]:
            when = None if point.key in timeless else point.timestamp
            return point.key, point.step, repr(float(point.value)), when

        there: set[tuple[object, ...]] = set()
        for name in {point.key for point in points} & known.keys():
            there |= {identity(p) for p in self.client.get_metric_history(run, name)}
        return [point for point in points if identity(point) not in there]


def client_of(uri: str) -> MlflowClient:
    """Return MLflow's client, which neither waits for minutes nor prints secrets."""
    import_mlflow()
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic", "urllib3"):  # they would print URLs with secrets
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def import_mlflow() -> None:
    """Import MLflow, which takes a second or two, set up for a server that may be away."""
    # Before the import: the defaults block for minutes when a server is down. What failed is
    # tried again by us, who look first whether it was done after all.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401


def points_of(
    curves: Mapping[str, Sequence[float]],
    metrics: Mapping[str, float],
    *,
    time: float,
    model: str | None = None,
    step: int = 0,
) -> list[Metric]:
    """Return points of metrics, at `step`; those that have a curve come after its last step."""
    from mlflow.entities import Metric

    now = milliseconds(time)
    points = [
        Metric(key_of(name), float(value), now, step, model_id=model)
        for name, values in curves.items()
        for step, value in enumerate(values)
    ]
    last = {name: len(values) for name, values in curves.items()}
    return points + [
        Metric(key_of(name), float(value), now, last.get(name, step), model_id=model)
        for name, value in metrics.items()
    ]


def _content(run: Run) -> tuple[int, str]:
    """Order runs by how much is in them, most first."""
    return -len(run.data.params) - len(run.data.metrics), run.info.run_id


def key_of(name: str) -> str:
    """Return `name` with what MLflow forbids in keys replaced."""
    return re.sub(r"[^\w./ :-]", "_", name)


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
