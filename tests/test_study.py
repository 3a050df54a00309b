"""Finding a study file, and running it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import write_study

from autoprune.study import find_study_file, load_study


@pytest.mark.parametrize("kind", ["nothing", "file", "folder"])
def test_a_built_in_study_is_found_whatever_has_its_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind != "nothing":
        (tmp_path / "digits").touch() if kind == "file" else (tmp_path / "digits").mkdir()
    assert find_study_file("digits").name == "digits.py"
    assert find_study_file("digits").parent != tmp_path


def test_a_study_files_folder_is_first_while_it_runs_and_last_afterwards(tmp_path: Path) -> None:
    file = write_study(
        tmp_path / "study.py", before="assert sys.path[0] == os.path.dirname(__file__)"
    )
    before = list(sys.path)
    for _ in range(2):
        load_study(file)
        assert sys.path == [*before, str(tmp_path)]


@pytest.mark.parametrize("change", ["clear()", "insert(0, os.path.dirname(__file__))"])
def test_a_study_file_may_change_the_path(change: str, tmp_path: Path) -> None:
    load_study(write_study(tmp_path / "study.py", after=f"sys.path.{change}"))
    assert str(tmp_path) in sys.path
