"""A fitted estimator as a folder: JSON, and the network as it is exported. No pickle."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import read_signed, write_signed
from autoprune.results.exported import check_export
from autoprune.results.result import Model

if TYPE_CHECKING:
    from autoprune.sklearn.estimators import _Pruned

FORMAT = 1
ABOUT = "estimator.json"
AGAIN = "Save it again."
FITTED = ("n_features_in_", "n_params_", "dense_n_params_", "dense_score_")
NAMES = "feature_names_in_"
HERE = ("module", "out", "tracking_uri")
"""Parameters that are not saved: where a search leaves what, and code."""
ONNX = "model.onnx"

E = TypeVar("E", bound="_Pruned")


def save(estimator: _Pruned, folder: Path, *, kept: Sequence[str]) -> None:
    """Write a fitted estimator to a new folder, whole or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AutopruneError(f"`folder` must be new or empty, but {folder} is not. Use another.")
    if isinstance(estimator.module_, OnnxNetwork):
        raise AutopruneError(
            "An estimator must have its network as a module to be saved, but was loaded without. "
            "Load it with `module`, or copy its folder."
        )
    about = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "parameters": _plain(estimator.get_params(deep=False)),
        "module": "default" if estimator.module is None else "own",
        "built_with": estimator._built_with if _is_json(estimator._built_with) else None,
        "fitted": {
            name: _told(getattr(estimator, name))
            for name in (*FITTED, *kept, NAMES)
            if hasattr(estimator, name)
        },
        "front": [asdict(model) for model in estimator.front_],
        "selected": asdict(estimator.selected_),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        fresh = Path(place) / "model"
        problems = _export(estimator, fresh)
        write_signed(fresh / ABOUT, {**about, "problems": problems})
        fresh.replace(folder)


def _export(estimator: _Pruned, folder: Path) -> list[str]:
    """Write the network in every format that it allows; return why others are missing.

    Raises
    ------
    AutopruneError
        Unless each answers as the network in memory does.
    """
    import torch

    from autoprune.results.export import (
        differs,
        export_model,
        reference_file,
        reference_layout,
        verify,
    )
    from autoprune.results.load import load as load_export

    network = estimator.module_
    exported = export_model(
        network,
        folder,
        example=torch.zeros(2, estimator.n_features_in_),
        plan=estimator.plan_,
        about={"name": estimator.selected_.name},
        zeroed=estimator._zeroed,
    )
    fault = differs(load_export(folder, model=network), folder)
    faults = verify([folder])[folder.name] + ([] if fault is None else [fault])
    if faults:
        raise AutopruneError(f"A saved network must answer as in memory, but: {faults[0]}.")
    reference_file(folder).unlink()
    reference_layout(folder).unlink()
    return list(exported.problems)


def load(cls: type[E], folder: Path, *, module: Any, kept: Sequence[str]) -> E:
    """Read what `save` wrote."""
    about = read_signed(folder / ABOUT, way_out=AGAIN)
    if about.get("format") != FORMAT or about.get("estimator") != cls.__name__:
        raise AutopruneError(
            f"{folder} must hold a {cls.__name__} of format {FORMAT}, but holds a "
            f"{about.get('estimator')} of format {about.get('format')}."
        )
    check_export(folder)
    with _as_written(folder / ABOUT):
        estimator = cls(**(_plain(about["parameters"]) | {"module": module}))
        for name in (*FITTED, *kept, NAMES):
            if name != NAMES or name in about["fitted"]:
                setattr(estimator, name, _heard(about["fitted"][name]))
        estimator.front_ = tuple(Model(**model) for model in about["front"])
        estimator.selected_ = Model(**about["selected"])
        if about["module"] == "default" or module is not None:
            _read_network(estimator, about, folder)
        else:
            estimator.module_ = _program(folder, about["problems"])
    return estimator


def _program(folder: Path, problems: Sequence[str]) -> OnnxNetwork:
    file = folder / ONNX
    if not file.exists():
        raise AutopruneError(
            f"`module` must be given for a network without {ONNX}, which could not be written: "
            f"{'; '.join(problems)}."
        )
    return OnnxNetwork(file.read_bytes())


def _read_network(estimator: _Pruned, about: Mapping[str, Any], folder: Path) -> None:
    """Build the network's code, and read its weights and plan."""
    from autoprune.pruning.files import read_json
    from autoprune.pruning.plan import Plan
    from autoprune.results.exported import PLAN, read_plan
    from autoprune.results.load import load as load_export
    from autoprune.sklearn.data import Shape
    from autoprune.sklearn.fitting import bare
    from autoprune.sklearn.networks import Moments, network_of

    classes = len(estimator.classes_) if hasattr(estimator, "classes_") else None
    outputs = classes or estimator.n_outputs_
    network = network_of(
        bare(estimator.module),
        about["built_with"] or {},
        Shape(n_samples=1, n_features=estimator.n_features_in_, n_outputs=outputs),
        inputs=Moments.unknown(estimator.n_features_in_),
        targets=None if classes else Moments.unknown(outputs),
    )
    estimator.module_ = load_export(folder, model=network.build())
    estimator.plan_ = Plan.from_json(read_json(folder / PLAN))
    estimator._built_with = about["built_with"]
    estimator._zeroed = read_plan(folder / PLAN).zeroed


class OnnxNetwork:
    """A network that ONNX Runtime runs: neither its class nor torch is needed."""

    def __init__(self, program: bytes) -> None:
        self._program = program

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(self._program, providers=["CPUExecutionProvider"])

    def __getstate__(self) -> dict[str, Any]:
        return {"_program": self._program}  # a session cannot be copied

    def answers(self, inputs: NDArray[np.float32]) -> NDArray[Any]:
        """Return what it says of [samples, features]."""
        (name,) = (entry.name for entry in self._session.get_inputs())
        (found,) = self._session.run(None, {name: np.ascontiguousarray(inputs, np.float32)})
        return np.asarray(found)


@contextlib.contextmanager
def _as_written(file: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AutopruneError(
            f"{file} must be as it was saved, but reading it gave {first_line(error)}. {AGAIN}"
        ) from error


def _told(value: Any) -> Any:
    """Return an attribute as JSON holds it."""
    if not isinstance(value, np.ndarray):
        return value
    entry = {"dtype": value.dtype.str, "values": value.tolist()}
    if not _is_json(entry):
        raise AutopruneError(
            f"Classes must be numbers or texts to be saved, but are of type {value.dtype}."
        )
    return entry


def _heard(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return np.array(value["values"], dtype=np.dtype(value["dtype"]))


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parameters that JSON can hold, and that mean the same elsewhere."""
    known = {n: v.item() if isinstance(v, np.generic) else v for n, v in params.items()}
    return {name: v for name, v in known.items() if name not in HERE and _is_json(v)}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
