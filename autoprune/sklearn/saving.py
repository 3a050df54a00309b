"""A fitted estimator as a folder: JSON, and the network as it is exported. No pickle."""

from __future__ import annotations

import contextlib
import functools
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
from autoprune.results.changes import TOLERANCE
from autoprune.results.exported import check_export
from autoprune.results.result import Model

if TYPE_CHECKING:
    from torch import nn

    from autoprune.sklearn.estimators import _Pruned

FORMAT = 2
ABOUT = "estimator.json"
AGAIN = "Save it again."
FITTED = ("n_features_in_", "n_params_", "dense_n_params_", "dense_score_")
NAMES = "feature_names_in_"
HERE = ("module", "out", "tracking_uri")
"""Parameters that are not saved: where a search leaves what, and code."""
ONNX = "model.onnx"
ASKED = 4
"""Samples whose answers say whether a network is the one that was saved."""
SINGLE = 1e-6
"""By how much single precision rounds otherwise, as a share of the number."""

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
    held, unheld = _held(estimator._built_with)
    about = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "parameters": _plain(estimator.get_params(deep=False)),
        "module": "default" if estimator.module is None else "own",
        "built_with": held,
        "unheld": unheld,
        "answers": _asked(estimator.module_, estimator.n_features_in_).tolist(),
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
        default, problems = about["module"] == "default", list(about["problems"])
        built_with, unheld = dict(about["built_with"]), list(about["unheld"])
        expected = np.array(about["answers"], dtype=np.float64)
    if module is None and (unheld or not default):
        estimator.module_ = _program(folder, problems)
        return estimator
    _check_bound(module, unheld)
    _read_network(estimator, built_with, folder)
    _check_answers(_asked(estimator.module_, estimator.n_features_in_), expected)
    return estimator


def _program(folder: Path, problems: Sequence[str]) -> OnnxNetwork:
    file = folder / ONNX
    if not file.exists():
        raise AutopruneError(
            f"`module` must be given for a network without {ONNX}, which could not be written: "
            f"{'; '.join(problems)}."
        )
    return OnnxNetwork(file.read_bytes())


def _check_bound(module: Any, unheld: Sequence[str]) -> None:
    bound = module.keywords if isinstance(module, functools.partial) else {}
    missing = [name for name in unheld if name not in bound]
    if missing:
        raise AutopruneError(
            f"`module` must come with the arguments that JSON could not hold, but has no "
            f"{', '.join(missing)}. Bind them, functools.partial(module, {missing[0]}=...), or "
            f"load without `module`: then ONNX answers."
        )


def _read_network(estimator: _Pruned, built_with: Mapping[str, Any], folder: Path) -> None:
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
        built_with,
        Shape(n_samples=1, n_features=estimator.n_features_in_, n_outputs=outputs),
        inputs=Moments.unknown(estimator.n_features_in_),
        targets=None if classes else Moments.unknown(outputs),
    )
    estimator.module_ = load_export(folder, model=network.build())
    with _as_written(folder / PLAN):
        estimator.plan_ = Plan.from_json(read_json(folder / PLAN))
        estimator._zeroed = read_plan(folder / PLAN).zeroed
    estimator._built_with = built_with


def _asked(network: nn.Module, features: int) -> NDArray[Any]:
    """Return what a network says of a few samples that are always the same."""
    from autoprune.sklearn.networks import answers

    samples = 3 * np.sin(np.arange(ASKED * features)).reshape(ASKED, features)
    return answers(network, samples)


def _check_answers(found: NDArray[Any], expected: NDArray[Any]) -> None:
    whole = expected[np.isfinite(expected).reshape(len(expected), -1).all(1)]
    spread = np.ptp(whole, axis=0).max(initial=0.0) if len(whole) else 0.0
    # Machines round otherwise, by a share of what there is to tell apart, or of the numbers.
    near = TOLERANCE * spread + SINGLE * np.abs(whole).max(initial=0.0)
    same = found.shape == expected.shape
    if not (same and np.allclose(found, expected, rtol=0, atol=near, equal_nan=True)):
        raise AutopruneError(
            "`module` must be what the estimator was fitted with, but its network does not answer "
            "as it did when it was saved. Pass the same code, or load without `module`: then ONNX "
            "answers."
        )


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
    try:
        return {"dtype": value.dtype.str, "values": _as_json(value.tolist())}
    except TypeError:
        raise AutopruneError(
            f"Classes must be numbers or texts to be saved, but are of type {value.dtype}."
        ) from None


def _heard(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return np.array(value["values"], dtype=np.dtype(value["dtype"]))


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parameters that JSON can hold, and that mean the same elsewhere."""
    return _held({name: v for name, v in params.items() if name not in HERE})[0]


def _held(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return those entries that JSON can hold, as it does, and the names of the others."""
    held, unheld = {}, []
    for name, value in values.items():
        try:
            held[name] = _as_json(value)
        except TypeError:
            unheld.append(name)
    return held, unheld


def _as_json(value: Any) -> Any:
    """Return `value` as JSON holds it: tuples as lists, numpy's numbers as Python's.

    Raises
    ------
    TypeError
        If JSON cannot hold it.

    >>> _as_json({"hidden": (np.int64(24), 12), "dropout": np.float32(0.5)})
    {'hidden': [24, 12], 'dropout': 0.5}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _as_json(entry) for name, entry in value.items()}
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")
