"""A search's runs in MLflow: one parent, one child per trial, models on the front's runs."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import write_json
from autoprune.results.records import FrontModel, TrialRecord

RUN_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
SEARCH_TAG, TRIAL_TAG = "autoprune.search", "autoprune.trial"
VALUE_LIMIT = 5_000
"""Longest value that is logged as a tag or parameter, in characters."""
BATCH = 100
"""Most parameters, metrics or tags that are sent at once."""


class MlflowRuns:
    """Finds or creates the runs of one search and writes to them.

    Runs that carry the search's id already are found again, so that replaying is harmless.
    """

    def __init__(
        self, uri: str, experiment: str, search: str, name: str, artifacts: Path | None
    ) -> None:
        # Before the import: the defaults block for minutes when a server is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri)
        self._search = search
        self._name = name
        self._experiment = self._experiment_id(experiment, artifacts)
        self._closed: set[str] = set()
        """Whose runs were closed when they were found."""
        self._runs = self._known_runs()

    def _experiment_id(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = artifacts.resolve().as_uri() if artifacts is not None else None
        return str(self._client.create_experiment(name, artifact_location=location))

    def _known_runs(self) -> dict[str, str]:
        known: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{SEARCH_TAG}` = '{self._search}'",
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get(TRIAL_TAG, "")
                known[key] = run.info.run_id
                if run.info.status in RUN_STATUS.values():
                    self._closed.add(key)
            token = page.token
            if not token:
                return known

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        run = self._run("", self._name, {}, started=time.time())
        self._log(run, params=params, metrics={}, curves={}, tags=tags)

    def trial(self, record: TrialRecord) -> None:
        parent = {"mlflow.parentRunId": self._runs[""], TRIAL_TAG: record.key}
        run = self._run(record.key, record.run_name, parent, started=record.started)
        tags = {**record.tags, "state": record.state, "front": "false"}
        self._log(
            run, params=record.params, metrics=record.metrics, curves=record.curves, tags=tags
        )
        with tempfile.TemporaryDirectory() as folder:
            if record.plan is not None:
                write_json(Path(folder) / "plan.json", record.plan)
            if record.sparsity:
                from autoprune.results.figures import sparsity_picture

                sparsity_picture(record.sparsity, record.run_name, Path(folder) / "sparsity.png")
            self._client.log_artifacts(run, folder)
        self._client.set_terminated(
            run, RUN_STATUS[record.state], end_time=_milliseconds(record.ended)
        )

    def missing(self, records: Sequence[TrialRecord]) -> None:
        """Record those trials that have no run, or one that was never closed."""
        for record in records:
            if record.key not in self._closed:
                self.trial(record)

    def front(self, models: Sequence[FrontModel], files: Sequence[Path]) -> None:
        problems = [f"no run for {m.key}" for m in models if m.key not in self._runs]
        models = [m for m in models if m.key in self._runs]
        known = {self._runs[model.key] for model in models}
        marked = self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.`{SEARCH_TAG}` = '{self._search}' and tags.front = 'true'",
        )
        for run_before in marked:
            if run_before.info.run_id not in known:
                self._client.set_tag(run_before.info.run_id, "front", "false")
        for model in models:
            run = self._runs[model.key]
            self._log(run, params={}, metrics=model.metrics, curves={}, tags={"front": "true"})
        for file in files:
            self._client.log_artifact(self._runs[""], str(file))
        for model in models:
            try:
                self._log_model(self._runs[model.key], model)
            except Exception as error:  # the other models must not suffer for it
                problems.append(f"the model of {model.key}: {first_line(error)}")
        if problems:
            raise AutopruneError("; ".join(problems))

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        self._log(self._runs[""], params={}, metrics=metrics, curves={}, tags={})
        self._client.set_terminated(self._runs[""], status)

    def _run(self, key: str, name: str, tags: Mapping[str, str], *, started: float) -> str:
        if key in self._runs:
            self._client.update_run(self._runs[key], status="RUNNING")
            return self._runs[key]
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(started),
            run_name=name,
            tags={SEARCH_TAG: self._search, **tags},
        )
        self._runs[key] = run.info.run_id
        return self._runs[key]

    def _log(
        self,
        run: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Mapping[str, Sequence[float]],
        tags: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = _milliseconds(time.time())
        points = [
            Metric(_key(name), value, now, step)
            for name, values in curves.items()
            for step, value in enumerate(values)
        ]
        last = {name: len(values) for name, values in curves.items()}
        points += [Metric(_key(n), float(v), now, last.get(n, 0)) for n, v in metrics.items()]
        entries = [Param(_key(n), str(v)[:VALUE_LIMIT]) for n, v in params.items()]
        labels = [RunTag(_key(n), str(v)[:VALUE_LIMIT]) for n, v in tags.items()]
        for start in range(0, max(len(entries), len(labels), len(points), 1), BATCH):
            part = slice(start, start + BATCH)
            self._client.log_batch(run, points[part], entries[part], labels[part])

    def _log_model(self, run: str, model: FrontModel) -> None:
        """Log in a format that loads without pickle and without autoprune."""
        import mlflow

        from autoprune.results.signature import describe

        described = describe(model.example, model.module())
        if described is None:
            self._client.log_artifacts(run, str(model.folder), "model")
            return
        signature, example, plain = described
        common: dict[str, Any] = {"name": "model", "signature": signature}
        ended = self._client.get_run(run).info.end_time
        previous = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self._uri)
        try:
            # Only an active run makes MLflow keep the model in the run's own experiment.
            with mlflow.start_run(run_id=run, log_system_metrics=False):
                self._log_flavor(model, plain, example, common)
        finally:
            mlflow.set_tracking_uri(previous)
            self._client.set_terminated(run, "FINISHED", end_time=ended)

    def _log_flavor(
        self, model: FrontModel, plain: bool, example: Any, common: dict[str, Any]
    ) -> None:
        import mlflow

        if plain:
            import mlflow.pytorch
            import torch

            mlflow.pytorch.log_model(
                model.module(),
                input_example=example,
                serialization_format="pt2",
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
                **common,
            )
        elif (model.folder / "model.onnx").exists():
            import mlflow.onnx
            import onnx

            mlflow.onnx.log_model(
                onnx.load(str(model.folder / "model.onnx")),
                input_example=example,
                pip_requirements=["onnx", "onnxruntime"],
                onnx_execution_providers=["CPUExecutionProvider"],
                **common,
            )
        else:
            mlflow.log_artifacts(str(model.folder), "model")


def _key(name: str) -> str:
    """Return `name` with what MLflow forbids in keys replaced."""
    return re.sub(r"[^\w./ :-]", "_", name)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
