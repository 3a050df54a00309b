"""The examples in the documentation run as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from autoprune import finale, run
from autoprune.pruning.criteria import CRITERIA
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

METHODS = (ROOT / "docs" / "pruning-methods.md").read_text()


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


@pytest.mark.usefixtures("registry")
def test_a_criterion_of_the_users_own_is_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finale, "verify", lambda folders: {f.name: [] for f in folders})
    (example,) = re.findall(r"```python\n(.*?)```", METHODS, re.DOTALL)
    file = tmp_path / "mine.py"
    file.write_text(example)
    result = run.search(file, out=tmp_path / "out", workers=0, budget=2, tracking_uri="none")
    assert result.front
    store = Store(tmp_path / "out")
    assert all(store.load_candidate(m.name).plan.criterion == "mine" for m in result.front)
    assert b"mine/" in store.scores(DENSE).read_bytes()


def test_every_criterion_is_described() -> None:
    table = METHODS.split("| --- | --- | --- |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(CRITERIA)
