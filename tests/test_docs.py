"""The examples in the documentation run as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, UNTRACKED

from autoprune import finale, run
from autoprune.pruning.criteria import CRITERIA
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE
from autoprune.study import REGISTRIES
from autoprune.training.sparsify import SPARSIFIERS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

METHODS = (ROOT / "docs" / "pruning-methods.md").read_text()


@pytest.fixture
def registry() -> Iterator[None]:
    before = [(registry, dict(registry)) for registry in REGISTRIES]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def written(folder: Path, name: str) -> Path:
    """Write the documented study of that name to a file."""
    examples = re.findall(r"```python\n(.*?)```", METHODS, re.DOTALL)
    (example,) = [e for e in examples if f'name="{name}"' in e]
    file = folder / f"{name}.py"
    file.write_text(example)
    return file


@pytest.mark.usefixtures("registry")
def test_a_criterion_of_the_users_own_is_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders: {f.name: [] for f in folders})
    file = written(tmp_path, "mine")
    result = run.search(file, out=tmp_path / "out", budget=2, **UNTRACKED)
    assert result.front
    store = Store(tmp_path / "out")
    assert all(store.load_candidate(m.name).plan.criterion == "mine" for m in result.front)
    assert b"mine/" in store.scores(DENSE).read_bytes()


@pytest.mark.usefixtures("registry")
def test_a_group_rule_of_the_users_own_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders: {f.name: [] for f in folders})
    file = written(tmp_path, "mixture")
    result = run.search(file, out=tmp_path / "out", budget=2, **UNTRACKED)
    groups = {g.name: g for g in Store(tmp_path / "out").load_grouping().groups}
    assert groups["left"].channels == 32
    makers = {s.tensor for s in groups["left"].slices if s.role == "out"}
    assert makers == {"left.weight", "left.bias", "right.weight", "right.bias"}
    smallest = result.load(result.front[0].name)
    assert smallest.size_of_experts == smallest.left.out_features < 32


@pytest.mark.usefixtures("registry")
def test_a_sparsifier_of_the_users_own_is_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders: {f.name: [] for f in folders})
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
