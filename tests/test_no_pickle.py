"""Nothing in the package loads a pickle from a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoprune

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
