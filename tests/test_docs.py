"""The documentation's examples run as they stand, and the tests that it names are there."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT, UNTRACKED

from autoprune import finale, run
from autoprune.pruning.criteria import CRITERIA
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE
from autoprune.searching.objectives import COSTS
from autoprune.searching.sampler import SAMPLERS
from autoprune.training.latency import ENGINES
from autoprune.training.sparsify import SPARSIFIERS
from autoprune.training.supervised import LOSSES

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

METHODS = (ROOT / "docs" / "pruning-methods.md").read_text()


def written(folder: Path, name: str) -> Path:
    """Write the documented study of that name to a file."""
    examples = re.findall(r"```python\n(.*?)```", METHODS, re.DOTALL)
    (example,) = [e for e in examples if f'name="{name}"' in e]
    file = folder / f"{name}.py"
    file.write_text(example)
    return file


@pytest.mark.usefixtures("registries")
def test_a_criterion_of_the_users_own_is_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders, **_: {f.name: [] for f in folders})
    file = written(tmp_path, "mine")
    result = run.search(file, out=tmp_path / "out", budget=2, **UNTRACKED)
    assert result.front
    store = Store(tmp_path / "out")
    assert all(store.load_candidate(m.name).plan.criterion == "mine" for m in result.front)
    assert b"mine/" in store.scores(DENSE).read_bytes()


@pytest.mark.usefixtures("registries")
def test_a_group_rule_of_the_users_own_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders, **_: {f.name: [] for f in folders})
    file = written(tmp_path, "mixture")
    result = run.search(file, out=tmp_path / "out", budget=2, **UNTRACKED)
    groups = {g.name: g for g in Store(tmp_path / "out").load_grouping().groups}
    assert groups["left"].channels == 32
    makers = {s.tensor for s in groups["left"].slices if s.role == "out"}
    assert makers == {"left.weight", "left.bias", "right.weight", "right.bias"}
    smallest = result.load(result.front[0].name)
    assert smallest.size_of_experts == smallest.left.out_features < 32


@pytest.mark.usefixtures("registries")
def test_a_sparsifier_of_the_users_own_is_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders, **_: {f.name: [] for f in folders})
    file = written(tmp_path, "fading")
    result = run.search(file, out=tmp_path / "out", budget=2, **UNTRACKED)
    store = Store(tmp_path / "out")
    assert result.epochs == 2 * (1 + 2)
    plans = [store.load_candidate(m.name).plan.sparsify for m in result.front]
    assert [p and p.method for p in plans] == ["fade"] * len(plans)


def test_every_criterion_is_described() -> None:
    table = METHODS.split("| --- | --- | --- |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(CRITERIA)


def test_every_sparsifier_is_described() -> None:
    section = METHODS.split("## Sparsifiers")[1]
    table = section.split("| --- | --- | --- |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(SPARSIFIERS)


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.rst").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", reference, re.MULTILINE))
    packages = ["autoprune", *(f"autoprune.{f.parent.name}" for f in _with_public_names())]
    assert {"autoprune.sklearn", "autoprune.lightning"} <= set(packages)
    for package in packages:
        names = set(importlib.import_module(package).__all__) - {"__version__"}
        assert {f"{package}.{name}" for name in names} <= shown
    for registry in ("CRITERIA", "SPARSIFIERS", "GROUP_RULES"):
        assert re.search(rf"^\.\. registry:: [\w.]+\.{registry}$", reference, re.MULTILINE)
    for name in (*SAMPLERS, *LOSSES, *ENGINES, *COSTS):
        assert f"``{name}``" in reference


def _with_public_names() -> list[Path]:
    return [f for f in (ROOT / "autoprune").glob("*/__init__.py") if "__all__" in f.read_text()]


def test_the_lower_bounds_are_the_versions_that_were_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", d).groups() for d in project["dependencies"])
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: f"{bound}.0" for name, bound in bounds.items()} == tried


# --- tests that are named -----------------------------------------------------------------------

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([^`]+)\])?`")


@cache
def names_in(file: str) -> tuple[set[str], set[str]]:
    """Return the names of a file's tests, and all texts in it, such as parameters' ids."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return names, texts


def rows(section: str) -> list[list[str]]:
    """Return the cells of the table in a section of the page on reliability."""
    text = (ROOT / "docs" / "reliability.md").read_text().split(f"## {section}\n")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\\\) \| ", line.strip("| ")) for line in lines[2:]]


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_test_that_is_named_is_there(page: str) -> None:
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert len(named) > 10
    for file, test, parameter in named:
        names, texts = names_in(file)
        assert test in names, f"{file}::{test}"
        assert not parameter or parameter in texts, f"{file}::{test}[{parameter}]"


@pytest.mark.parametrize(("section", "least"), [("Bad input", 40), ("Faults", 15)])
def test_every_row_on_reliability_names_its_test(section: str, least: int) -> None:
    table = rows(section)
    assert len(table) >= least
    assert len({row[0] for row in table}) == len(table)
    for row in table:
        assert NAMED.fullmatch(row[-1]), row
    if section == "Faults":
        assert all(row[2].startswith("nothing") or "that" in row[2] for row in table)
