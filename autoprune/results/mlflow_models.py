"""Models in MLflow's format, made of exported files as they are: nothing is loaded or pickled."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.pruning.files import file_digest
from autoprune.results.export import ONNX, PROGRAM
from autoprune.results.exported import WEIGHTS
from autoprune.results.signature import Described, mlflow_signature

DATA = "data"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """An exported model that is to become one of MLflow's.

    Parameters
    ----------
    folder
        Where it was exported to.
    example
        Inputs by name, to be shown beside the model.
    """

    folder: Path
    described: Described
    example: Mapping[str, np.ndarray]

    @property
    def flavour(self) -> str | None:
        """Return ``pytorch``, ``onnx``, or None where neither file can be served by MLflow."""
        if self.described.plain and (self.folder / PROGRAM).exists():
            return "pytorch"
        return "onnx" if (self.folder / ONNX).exists() else None

    @property
    def digest(self) -> str:
        """Tell this export from any other."""
        return file_digest(self.folder / WEIGHTS)

    def write(self, to: Path, *, model_id: str, run: str, location: str) -> None:
        """Write the model to the folder `to`, in MLflow's format.

        Parameters
        ----------
        model_id, run, location
            MLflow's names for the model, the run it belongs to, and where its files go.
        """
        from mlflow.models import Model

        model = Model(
            artifact_path=location,
            run_id=run,
            model_id=model_id,
            model_uuid=model_id,
            signature=mlflow_signature(self.described),
        )
        if self.flavour == "pytorch":
            self._write_program(to, model)
        else:
            self._write_onnx(to, model)

    def _write_program(self, to: Path, model: Any) -> None:
        from mlflow import pyfunc

        (to / DATA).mkdir(parents=True)
        shutil.copyfile(self.folder / PROGRAM, to / DATA / PROGRAM)
        requirements = [f"mlflow=={version('mlflow')}", f"torch=={_torch_version()}"]
        (to / "requirements.txt").write_text("\n".join(requirements) + "\n")
        python = platform.python_version()
        conda = {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={python}", "pip", {"pip": requirements}],
        }
        virtualenv = {
            "python": python,
            "build_dependencies": ["pip"],
            "dependencies": ["-r requirements.txt"],
        }
        # JSON is YAML, too.
        (to / "conda.yaml").write_text(json.dumps(conda, indent=1))
        (to / "python_env.yaml").write_text(json.dumps(virtualenv, indent=1))
        (example,) = self.example.values()
        (to / "input_example.json").write_text(json.dumps(example.tolist()))
        (to / "serving_input_example.json").write_text(json.dumps({"inputs": example.tolist()}))
        model.saved_input_example_info = {
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        }
        model.add_flavor("pytorch", model_data=DATA, pytorch_version=version("torch"), code=None)
        pyfunc.add_to_model(
            model,
            loader_module="mlflow.pytorch",
            data=DATA,
            conda_env="conda.yaml",
            python_env="python_env.yaml",
            model_config={"device": None},
        )
        model.save(str(to / "MLmodel"))

    def _write_onnx(self, to: Path, model: Any) -> None:
        import mlflow.onnx
        import onnx

        mlflow.onnx.save_model(
            onnx.load(str(self.folder / ONNX)),
            str(to),
            mlflow_model=model,
            signature=model.signature,
            input_example=dict(self.example),
            pip_requirements=["onnx", "onnxruntime"],
            onnx_execution_providers=["CPUExecutionProvider"],
        )


def _torch_version() -> str:
    """Return the version without the build's name, which the package index does not know."""
    return version("torch").split("+")[0]
