"""A search's runs in MLflow: one parent, one child per trial, models on the front's runs.

Everything here may be done again, after half of it was done: runs, points of metrics and models
that are there already are found, and not made twice.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import write_json
from autoprune.results.mlflow_models import ModelFiles
from autoprune.results.records import (
    FinishRecord,
    FrontRecord,
    ModelEntry,
    Record,
    StartRecord,
    TrialRecord,
)
from autoprune.results.signature import Described

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric, Run

RUN_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
SEARCH_TAG, TRIAL_TAG, MODEL_TAG = "autoprune.search", "autoprune.trial", "autoprune.export"
MODEL = "model"
"""Name of a run's model, or of the folder of its files."""
VALUE_LIMIT = 5_000
"""Longest value that is logged as a tag or parameter, in characters."""
BATCH = 100
"""Most parameters, metrics or tags that are sent at once."""
REQUEST_SECONDS = 20
"""Longest that one request may take, if the environment does not say otherwise."""


class MlflowRuns:
    """Finds or creates the runs of one search and writes to them.

    Parameters
    ----------
    uri
        Tracking URI.
    search, name
        The search's id, which its runs are found by, and the name of its own run.
    root
        The output folder, which records refer to.
    artifacts
        Where a new experiment keeps its files; None leaves that to the server.
    on_step
        Is called whenever the server has answered. What it raises ends the delivery.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        search: str,
        name: str,
        root: Path,
        artifacts: Path | None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        # Before the import: the defaults block for minutes when a server is down. What failed is
        # tried again by us, who look first whether it was done after all.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic", "urllib3"):  # they would print URLs with secrets
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._client = MlflowClient(tracking_uri=uri)
        self._search = search
        self._name = name
        self._root = root
        self._step = on_step
        self._experiment = self._experiment_id(experiment, artifacts)
        self._runs = self._known_runs()
        self._old = set(self._runs.values())
        """Runs that may have some of what is to be written already."""

    def is_alive(self) -> bool:
        """Ask the server something easy."""
        try:
            self._client.get_experiment(self._experiment)
        except Exception:
            return False
        return True

    def deliver(self, record: Record, *, over: bool = False) -> list[str]:
        """Write a record; return what of it can never be written, one line each.

        `over` says that the sitting which the record belongs to has ended.
        """
        if isinstance(record, StartRecord):
            self._start(record, over=over)
        elif isinstance(record, TrialRecord):
            self._trial(record)
        elif isinstance(record, FrontRecord):
            return self._front(record)
        else:
            self._finish(record)
        return []

    # --- records ----------------------------------------------------------------------------

    def _start(self, record: StartRecord, *, over: bool) -> None:
        run = self._parent(record.time)
        if not over and run in self._old:
            self._client.update_run(run, status="RUNNING")
        self._log(run, time=record.time, params=record.params, tags=record.tags)

    def _trial(self, record: TrialRecord) -> None:
        run = self._runs.get(record.key)
        if run is None:
            parent = self._parent(record.started)
            tags = {"mlflow.parentRunId": parent, TRIAL_TAG: record.key, "front": "false"}
            run = self._create(record.key, record.run_name, tags, started=record.started)
        self._log(
            run,
            time=record.ended,
            params=record.params,
            metrics=record.metrics,
            curves=record.curves,
            tags={**record.tags, "state": record.state, "mlflow.runName": record.run_name},
        )
        with tempfile.TemporaryDirectory() as folder:
            if record.plan is not None:
                write_json(Path(folder) / "plan.json", record.plan)
            if record.sparsity:
                from autoprune.results.figures import sparsity_picture

                sparsity_picture(record.sparsity, record.run_name, Path(folder) / "sparsity.png")
            self._client.log_artifacts(run, folder)
            self._step()
        ended = _milliseconds(record.ended)
        self._client.set_terminated(run, RUN_STATUS[record.state], end_time=ended)
        self._old.add(run)
        self._step()

    def _front(self, record: FrontRecord) -> list[str]:
        problems = [f"no run for {m.key}" for m in record.models if m.key not in self._runs]
        models = [m for m in record.models if m.key in self._runs]
        runs = {self._runs[model.key] for model in models}
        for run_before in self._found(" and tags.front = 'true'"):
            if run_before.info.run_id not in runs:
                self._client.set_tag(run_before.info.run_id, "front", "false")
        for model in models:
            tags = {"front": "true"}
            self._log(self._runs[model.key], time=record.time, metrics=model.metrics, tags=tags)
        gone = [file for file in record.files if not (self._root / file).exists()]
        for file in record.files:
            if file not in gone:
                self._client.log_artifact(self._parent(record.time), str(self._root / file))
                self._step()
        for model in models:
            if not (self._root / model.folder).is_dir():
                gone.append(model.folder)
                continue
            try:
                self._log_model(self._runs[model.key], model, time=record.time)
            except Exception as error:  # the other models must not suffer for it
                if not self.is_alive():
                    raise
                problems.append(f"the model of {model.key}: {first_line(error)}")
        if problems:
            raise AutopruneError("; ".join(problems))
        return [f"MLflow cannot be given {name}: it is not there any more." for name in gone]

    def _finish(self, record: FinishRecord) -> None:
        run = self._parent(record.time)
        self._log(run, time=record.time, metrics=record.metrics)
        self._client.set_terminated(run, record.status, end_time=_milliseconds(record.time))
        self._step()

    # --- runs -------------------------------------------------------------------------------

    def _experiment_id(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        self._step()
        if found is not None:
            return str(found.experiment_id)
        location = artifacts.resolve().as_uri() if artifacts is not None else None
        return str(self._client.create_experiment(name, artifact_location=location))

    def _found(self, more: str = "") -> list[Run]:
        """Return the runs of this search, or those of them that `more` is true of."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{SEARCH_TAG}` = '{self._search}'{more}",
                page_token=token,
            )
            self._step()
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
        for run in sorted(self._found(), key=_content):
            key = run.data.tags.get(TRIAL_TAG, "")
            if key in known:
                self._client.delete_run(run.info.run_id)
            known.setdefault(key, run.info.run_id)
        return known

    def _parent(self, started: float) -> str:
        return self._runs.get("") or self._create("", self._name, {}, started=started)

    def _create(self, key: str, name: str, tags: Mapping[str, str], *, started: float) -> str:
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(started),
            run_name=name,
            tags={SEARCH_TAG: self._search, **tags},
        )
        self._runs[key] = str(run.info.run_id)
        self._step()
        return self._runs[key]

    def _log(
        self,
        run: str,
        *,
        time: float,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[float]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        points = _points(curves or {}, metrics or {}, time=time)
        entries = [Param(_key(n), str(v)[:VALUE_LIMIT]) for n, v in (params or {}).items()]
        labels = [RunTag(_key(n), str(v)[:VALUE_LIMIT]) for n, v in (tags or {}).items()]
        if run in self._old:
            data = self._client.get_run(run).data
            entries = [entry for entry in entries if entry.key not in data.params]
            points = self._missing(run, points, known=data.metrics, curves=curves or {})
        for start in range(0, max(len(entries), len(labels), len(points)), BATCH):
            part = slice(start, start + BATCH)
            self._client.log_batch(run, points[part], entries[part], labels[part])
            self._step()

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
        timeless = {_key(name) for name in curves}

        def identity(point: Metric) -> tuple[object, ...]:
            when = None if point.key in timeless else point.timestamp
            return point.key, point.step, repr(float(point.value)), when

        there: set[tuple[object, ...]] = set()
        for name in {point.key for point in points} & known.keys():
            there |= {identity(p) for p in self._client.get_metric_history(run, name)}
        return [point for point in points if identity(point) not in there]

    # --- models -----------------------------------------------------------------------------

    def _log_model(self, run: str, entry: ModelEntry, *, time: float) -> None:
        """Log a model in a format that loads without pickle and without autoprune."""
        files = self._model_files(entry)
        if files is None or files.flavour is None:
            self._client.log_artifacts(run, str(self._root / entry.folder), MODEL)
            self._step()
            return
        logged = self._logged_model(run)
        if logged is None:
            logged = self._create_model(run, files, entry, time=time)
        outputs = self._client.get_run(run).outputs
        if logged.model_id not in {o.model_id for o in (outputs.model_outputs if outputs else ())}:
            from mlflow.entities import LoggedModelOutput

            self._client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
        self._step()

    def _model_files(self, entry: ModelEntry) -> ModelFiles | None:
        if entry.signature is None:
            return None
        from safetensors.numpy import load

        value = dict(entry.signature)
        content = (self._root / value.pop("example")).read_bytes()
        arrays: dict[str, np.ndarray] = load(content)
        described = Described(**value)
        return ModelFiles(
            folder=self._root / entry.folder,
            described=described,
            example={name: arrays[name] for name, _, _ in described.inputs},
        )

    def _logged_model(self, run: str) -> LoggedModel | None:
        """Return the model that a run has already; delete what was only half written."""
        page = self._client.search_logged_models(
            [self._experiment], filter_string=f"source_run_id = '{run}'"
        )
        self._step()
        ready = None
        for model in page:
            if ready is None and model.name == MODEL and model.status == "READY":
                ready = model
            elif model.tags.get(MODEL_TAG) == "true":
                self._client.delete_logged_model(model.model_id)
        return ready

    def _create_model(
        self, run: str, files: ModelFiles, entry: ModelEntry, *, time: float
    ) -> LoggedModel:
        made = self._client.create_logged_model(
            self._experiment, name=MODEL, source_run_id=run, tags={MODEL_TAG: "true"}
        )
        self._step()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            files.write(place, model_id=made.model_id, run=run, location=made.artifact_location)
            self._client.log_model_artifacts(made.model_id, str(place))
            self._step()
        points = _points({}, entry.metrics, time=time, model=made.model_id)
        self._client.log_batch(run, points)
        return self._client.finalize_logged_model(made.model_id, "READY")


def signature_json(described: Described | None, example: str) -> dict[str, Any] | None:
    """Return what a `ModelEntry` says of a model; `example` is its inputs' file."""
    return None if described is None else {**asdict(described), "example": example}


def _points(
    curves: Mapping[str, Sequence[float]],
    metrics: Mapping[str, float],
    *,
    time: float,
    model: str | None = None,
) -> list[Metric]:
    """Return points of metrics; those that have a curve come after its last step."""
    from mlflow.entities import Metric

    now = _milliseconds(time)
    points = [
        Metric(_key(name), float(value), now, step, model_id=model)
        for name, values in curves.items()
        for step, value in enumerate(values)
    ]
    last = {name: len(values) for name, values in curves.items()}
    return points + [
        Metric(_key(name), float(value), now, last.get(name, 0), model_id=model)
        for name, value in metrics.items()
    ]


def _content(run: Run) -> tuple[int, str]:
    """Order runs by how much is in them, most first."""
    return -len(run.data.params) - len(run.data.metrics), run.info.run_id


def _key(name: str) -> str:
    """Return `name` with what MLflow forbids in keys replaced."""
    return re.sub(r"[^\w./ :-]", "_", name)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
