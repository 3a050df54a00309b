"""A search's runs in MLflow: one parent, one child per trial, models on the front's runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import write_json
from autoprune.results.mlflow_api import TRIAL_TAG, SearchApi, milliseconds
from autoprune.results.mlflow_logged import FrontModels
from autoprune.results.mlflow_registry import Registered, Registry
from autoprune.results.notes import RUN_LINK
from autoprune.results.records import (
    KIND,
    AddedRecord,
    FinishRecord,
    FrontRecord,
    Record,
    StartRecord,
    TrialRecord,
)
from autoprune.searching.candidate import DENSE

RUN_STATUS = {"complete": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
"""A trial that was stopped early has ended as it should: its tag `state` says so."""
NOTE = "mlflow.note.content"


class MlflowRuns:
    """Writes the records of one search.

    Parameters
    ----------
    uri, experiment, search, name, artifacts, on_step
        See `SearchApi`.
    root
        The output folder, which records refer to.
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
        self._api = SearchApi(
            uri, experiment, search=search, name=name, artifacts=artifacts, on_step=on_step
        )
        self._models = FrontModels(self._api, root)
        self._root = root

    def is_alive(self) -> bool:
        """Ask the server something easy."""
        return self._api.is_alive()

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
        elif isinstance(record, AddedRecord):
            return self._added(record)
        else:
            self._finish(record)
        return []

    # --- records ----------------------------------------------------------------------------

    def _start(self, record: StartRecord, *, over: bool) -> None:
        run = self._api.parent(record.time)
        if not over and run in self._api.old:
            self._api.client.update_run(run, status="RUNNING")
        tags = {**record.tags, KIND: "search", **_source()}
        self._api.log(run, time=record.time, params=record.params, tags=tags)

    def _trial(self, record: TrialRecord) -> None:
        run = self._api.runs.get(record.key)
        if run is None:
            parent = self._api.parent(record.started)
            tags = {"mlflow.parentRunId": parent, TRIAL_TAG: record.key, "front": "false"}
            run = self._api.create(record.key, record.run_name, tags, started=record.started)
        self._api.log(
            run,
            time=record.ended,
            params=record.params,
            metrics=record.metrics,
            curves=record.curves,
            tags={
                **record.tags,
                **_source(),
                NOTE: record.note,
                "state": record.state,
                "mlflow.runName": record.run_name,
            },
        )
        self._search_metrics(record)
        with tempfile.TemporaryDirectory() as folder:
            if record.plan is not None:
                write_json(Path(folder) / "plan.json", record.plan)
            if record.sparsity:
                from autoprune.results.figures import sparsity_picture

                sparsity_picture(record.sparsity, record.run_name, Path(folder) / "sparsity.png")
            self._api.client.log_artifacts(run, folder)
            self._api.step()
        ended = milliseconds(record.ended)
        self._api.client.set_terminated(run, RUN_STATUS[record.state], end_time=ended)
        self._api.old.add(run)
        self._api.step()

    def _search_metrics(self, record: TrialRecord) -> None:
        """Let the search's own run have its curves' next points."""
        if record.search_metrics:
            self._api.log(
                self._api.parent(record.started),
                time=record.ended,
                metrics=record.search_metrics,
                step=record.step,
            )

    def _front(self, record: FrontRecord) -> list[str]:
        named = [*(m.key for m in record.models), *([DENSE] if record.overview.dense else [])]
        problems = [f"no run for {key}" for key in named if key not in self._api.runs]
        models = [m for m in record.models if m.key in self._api.runs]
        runs = {self._api.runs[model.key] for model in models}
        for run_before in self._api.found(" and tags.front = 'true'"):
            if run_before.info.run_id not in runs:
                self._api.client.set_tag(run_before.info.run_id, "front", "false")
        for model in models:
            tags = {"front": "true"}
            self._api.log(
                self._api.runs[model.key], time=record.time, metrics=model.metrics, tags=tags
            )
        lacking = self._attach(record.files, time=record.time)
        registered: list[Registered] = []
        for model in models:
            if not (self._root / model.folder).is_dir():
                lacking.append(_gone(model.folder))
                continue
            try:
                run = self._api.runs[model.key]
                logged = self._models.log(run, model, time=record.time)
            except Exception as error:  # the other models must not suffer for it
                if not self._api.is_alive():
                    raise
                problems.append(f"the model of {model.key}: {first_line(error)}")
                continue
            if logged is not None:
                registered.append(
                    Registered(
                        key=model.key,
                        run=run,
                        model_id=logged.model_id,
                        location=logged.artifact_location,
                        about=model.about,
                    )
                )
            elif record.overview.register is not None:
                lacking.append(
                    f"{model.folder} cannot be registered: MLflow serves none of its formats."
                )
        self._overview(record, registered)
        if problems:
            raise AutopruneError("; ".join(problems))
        return lacking

    def _overview(self, record: FrontRecord, models: list[Registered]) -> None:
        """Say on the search's own run what is worth a look, and register it."""
        overview = record.overview
        parent = self._api.parent(record.time)
        note = overview.note
        for key, run in self._api.runs.items():
            page = f"(#/experiments/{self._api.experiment}/runs/{run})"
            note = note.replace(f"({RUN_LINK}{key})", page)
        self._api.log(
            parent,
            time=record.time,
            tags={NOTE: note, **{f"worth.{a}": key for a, key in overview.aliases.items()}},
        )
        if overview.dense and DENSE in self._api.runs:
            self._api.log(self._api.runs[DENSE], time=record.time, metrics=overview.dense)
        if overview.register is not None:
            registry = Registry(self._api, overview.register, search=self._api.search)
            registry.register(models, overview.aliases)

    def _added(self, record: AddedRecord) -> list[str]:
        for key, metrics in record.metrics.items():
            if key in self._api.runs:
                self._api.log(self._api.runs[key], time=record.time, metrics=metrics)
        return self._attach(record.files, time=record.time)

    def _attach(self, files: Sequence[str], *, time: float) -> list[str]:
        """Attach files to the search's own run; return what is not there any more."""
        gone = [file for file in files if not (self._root / file).exists()]
        for file in files:
            if file not in gone:
                self._api.client.log_artifact(self._api.parent(time), str(self._root / file))
                self._api.step()
        return [_gone(file) for file in gone]

    def _finish(self, record: FinishRecord) -> None:
        run = self._api.parent(record.time)
        self._api.log(run, time=record.time, metrics=record.metrics)
        self._api.client.set_terminated(run, record.status, end_time=milliseconds(record.time))
        self._api.step()


def _gone(name: str) -> str:
    return f"MLflow cannot be given {name}: it is not there any more."


def _source() -> dict[str, str]:
    """Return what MLflow shows as the origin of a run."""
    return {"mlflow.source.name": "autoprune", "mlflow.source.type": "LOCAL"}
