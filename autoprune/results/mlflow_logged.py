"""The front's models in MLflow: logged on their trials' runs, and in the model registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.results.mlflow_api import SearchApi, points_of
from autoprune.results.mlflow_models import ModelFiles
from autoprune.results.records import ModelEntry
from autoprune.results.signature import Described

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MODEL_TAG = "autoprune.export"
MODEL = "model"
"""Name of a run's model, or of the folder of its files."""


class FrontModels:
    """Logs exported models, each once.

    Parameters
    ----------
    root
        The output folder, which records refer to.
    """

    def __init__(self, api: SearchApi, root: Path) -> None:
        self._api = api
        self._root = root

    def log(self, run: str, entry: ModelEntry, *, time: float) -> LoggedModel | None:
        """Log a model in a format that loads without pickle and without autoprune.

        Returns it; None if MLflow can serve none of its formats, and keeps them as files.
        """
        files = self._files(entry)
        if files is None or files.flavour is None:
            self._api.client.log_artifacts(run, str(self._root / entry.folder), MODEL)
            self._api.step()
            return None
        logged = self._ready(run, files.digest)
        if logged is None:
            logged = self._create(run, files, entry, time=time)
        outputs = self._api.client.get_run(run).outputs
        if logged.model_id not in {o.model_id for o in (outputs.model_outputs if outputs else ())}:
            from mlflow.entities import LoggedModelOutput

            self._api.client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
        self._api.step()
        return logged

    def _files(self, entry: ModelEntry) -> ModelFiles | None:
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

    def _ready(self, run: str, digest: str) -> LoggedModel | None:
        """Return the model of these weights that a run has; delete what was only half written."""
        page = self._api.client.search_logged_models(
            [self._api.experiment], filter_string=f"source_run_id = '{run}'"
        )
        self._api.step()
        ready = None
        for model in page:
            finished = model.name == MODEL and model.status == "READY"
            if finished and model.tags.get(MODEL_TAG) == digest and ready is None:
                ready = model
            elif not finished and MODEL_TAG in model.tags:
                self._api.client.delete_logged_model(model.model_id)
        return ready

    def _create(
        self, run: str, files: ModelFiles, entry: ModelEntry, *, time: float
    ) -> LoggedModel:
        made = self._api.client.create_logged_model(
            self._api.experiment, name=MODEL, source_run_id=run, tags={MODEL_TAG: files.digest}
        )
        self._api.step()
        with TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            files.write(place, model_id=made.model_id, run=run, location=made.artifact_location)
            self._api.client.log_model_artifacts(made.model_id, str(place))
            self._api.step()
        points = points_of({}, entry.metrics, time=time, model=made.model_id)
        self._api.client.log_batch(run, points)
        return self._api.client.finalize_logged_model(made.model_id, "READY")


def signature_json(described: Described | None, example: str) -> dict[str, Any] | None:
    """Return what a `ModelEntry` says of a model; `example` is its inputs' file."""
    return None if described is None else {**asdict(described), "example": example}
