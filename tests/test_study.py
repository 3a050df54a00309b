"""Finding a study file, and running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.study import find_study_file


@pytest.mark.parametrize("kind", ["nothing", "file", "folder"])
def test_a_built_in_study_is_found_whatever_has_its_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind != "nothing":
        (tmp_path / "digits").touch() if kind == "file" else (tmp_path / "digits").mkdir()
    assert find_study_file("digits").name == "digits.py"
    assert find_study_file("digits").parent != tmp_path
