"""Nothing loads a pickle from a file: not the package, nor MLflow what it was given of us."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import sign, write
from nets import build
from pickles import HARMLESS, pickles_in, unpickled
from torch import nn

import autoprune
from autoprune.results.export import ONNX, PROGRAM
from autoprune.results.mlflow_models import ModelFiles
from autoprune.results.signature import describe
from autoprune.training.programs import save_onnx

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

PACKAGE = Path(autoprune.__file__).parent
UNPICKLING = {"pickle", "_pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
ALLOWED = {("study.py", "cloudpickle.loads")}
"""A study that was made in Python goes from one process of ours straight to another."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(source: str, name: str) -> list[str]:
    """Return the calls of a module that may unpickle what somebody else wrote."""
    found = []
    for called, node in calls(ast.parse(source)):
        module, _, function = called.rpartition(".")
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in ("torch.load", "torch.jit.load") and given.get("weights_only") != "True":
            found.append(called)
        if called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            found.append(called)
        if called in ("pd.read_pickle", "pandas.read_pickle", "mlflow.pytorch.load_model"):
            found.append(called)
        loads = module in UNPICKLING and function in ("load", "loads", "Unpickler", "open")
        if loads and (name, called) not in ALLOWED:
            found.append(called)
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.name)
def test_no_module_loads_a_pickle(file: Path) -> None:
    assert unsafe(file.read_text(), file.name) == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "joblib.load(path)",
        "np.load(path, allow_pickle=True)",
        "cloudpickle.loads(data)",
    ],
)
def test_the_search_for_pickles_finds_them(code: str) -> None:
    assert unsafe(code, "other.py")


# --- what MLflow is given, and loads ------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()


@pytest.fixture(scope="module")
def programs(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a program, in both formats, as an export has them."""
    folder = tmp_path_factory.mktemp("programs")
    batch = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=batch)
    torch.export.save(program, folder / PROGRAM)
    save_onnx(program, folder / ONNX)
    return folder


@pytest.mark.parametrize("flavour", ["pytorch", "onnx"])
def test_mlflow_models_load_without_unpickling(
    flavour: str, net: nn.Module, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.onnx
    import mlflow.pyfunc
    import mlflow.pytorch

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    name = PROGRAM if flavour == "pytorch" else ONNX
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / name).write_bytes((programs / name).read_bytes())
    example = torch.zeros(2, 4)
    described = describe(example, net)
    assert described is not None
    described = replace(described, plain=flavour == "pytorch")
    files = ModelFiles(
        folder=tmp_path / "export", described=described, example={"input": example.numpy()}
    )
    assert files.flavour == flavour
    files.write(tmp_path / "model", model_id="m-1", run="r-1", location="model")
    for names in pickles_in(tmp_path / "model").values():
        assert names <= HARMLESS
    loads: dict[str, Any] = {"pytorch": mlflow.pytorch, "onnx": mlflow.onnx}
    inputs = torch.rand(5, 4)
    with unpickled() as looked_up:
        loads[flavour].load_model(str(tmp_path / "model"))
        served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
        given = {"input": inputs.numpy()} if flavour == "onnx" else inputs.numpy()
        answer = served.predict(given)
    assert looked_up == []
    values = next(iter(answer.values())) if flavour == "onnx" else answer
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(values), net(inputs))


class Bomb:
    """Unpickling it runs code, which leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_the_watch_sees_what_is_unpickled(tmp_path: Path) -> None:
    with unpickled() as looked_up:
        pickle.loads(pickle.dumps(Path("here")))
    assert any("PosixPath" in name for name in looked_up)
    (tmp_path / "a").write_bytes(pickle.dumps(Bomb(tmp_path)))
    torch.save({"a": torch.zeros(2)}, tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "c", "w") as archive:
        archive.write(tmp_path / "a", "inner")
    found = pickles_in(tmp_path)
    assert found["a"] == found["c/inner"] == {"posix mkdir"}
    assert found["b/b/data.pkl"] <= HARMLESS


def test_a_forged_program_is_not_run_by_loading_an_export(programs: Path, tmp_path: Path) -> None:
    # torch.export.load itself would run it: what autoprune loads is the safetensors file.
    small = write(tmp_path, "mlp", 2)
    bomb = io.BytesIO()
    torch.save((Bomb(tmp_path / "the-code-ran"),), bomb)
    with (
        zipfile.ZipFile(programs / PROGRAM) as sound,
        zipfile.ZipFile(tmp_path / PROGRAM, "w") as forged,
    ):
        for name in sound.namelist():
            inputs = name.endswith("sample_inputs/model.pt")
            forged.writestr(name, bomb.getvalue() if inputs else sound.read(name))
    assert any("mkdir" in name for names in pickles_in(tmp_path).values() for name in names)
    digest = hashlib.sha256((tmp_path / PROGRAM).read_bytes()).hexdigest()
    sign(tmp_path, files={PROGRAM: digest})
    loaded = autoprune.load(tmp_path, model=build("mlp")[0])
    assert not (tmp_path / "the-code-ran").exists()
    assert json.loads((tmp_path / "plan.json").read_text())["params"] == sum(
        p.numel() for p in loaded.parameters()
    )
    assert loaded.state_dict().keys() == small.state_dict().keys()
