"""A full disk: what is said, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import UNTRACKED, write_study
from optuna.trial import TrialState

from autoprune import run
from autoprune.errors import AutopruneError, RoomError
from autoprune.pruning import files
from autoprune.pruning.files import write_whole

pytestmark = pytest.mark.usefixtures("quick_export")

SETTINGS: dict[str, Any] = UNTRACKED | {"budget": 4, "early_stop": False}


def ended(out: Path) -> list[Any]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    trials = optuna.load_study(study_name="tiny", storage=storage).trials
    return [(t.params, t.values) for t in trials if t.state == TrialState.COMPLETE]


def test_a_file_is_as_it_was_when_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old")
    monkeypatch.setattr(files.os, "fsync", full_from(1))
    with pytest.raises(RoomError, match=r"room to write .*file.*No space left.*same command"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def full_from(call: int) -> Any:
    """Return an fsync that finds the disk full from a certain call on."""
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


def test_a_full_disk_stops_the_search_which_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.asking.RETRIES", 9)  # the same trial may be hit each time
    study = write_study(tmp_path / "study.py", final_epochs=1)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run.search(study, out=whole, **SETTINGS)
    stops = 0
    for call in (9, 14, 20, 26, 30):  # of all writes: ours and the journal's
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_from(call))
            with pytest.raises(AutopruneError, match="room") as said:
                run.search(study, out=out, **SETTINGS)
        assert "\n" not in str(said.value)
        stops += 1
    assert stops == 5
    run.search(study, out=out, **SETTINGS)
    assert ended(out) == ended(whole)
    fronts = [json.loads((f / "front.json").read_text())["front"] for f in (out, whole)]
    values = [[(m["params"], m["valid"], m["test"]) for m in front] for front in fronts]
    assert values[0] == values[1]
