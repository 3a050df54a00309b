"""A full disk, and files that were altered: what is said, and that nothing is lost."""

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
from autoprune.progress import SilentReporter
from autoprune.pruning import files
from autoprune.pruning.files import write_whole
from autoprune.results.store import Store

pytestmark = pytest.mark.usefixtures("quick_export")

SETTINGS: dict[str, Any] = UNTRACKED | {"budget": 4, "early_stop": False}


def ended(out: Path) -> list[Any]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    trials = optuna.load_study(study_name="tiny", storage=storage).trials
    return [(t.params, t.values) for t in trials if t.state == TrialState.COMPLETE]


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


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
    for call in (9, 14, 23, 31, 37):  # of all writes: ours and the journal's
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


# --- altered files ------------------------------------------------------------------------------


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    run.search(write_study(tmp_path / "study.py"), out=tmp_path / "out", **SETTINGS)
    return tmp_path / "out"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def test_a_candidate_with_altered_weights_is_left_out_with_a_note(searched: Path) -> None:
    victim = sorted(searched.glob("candidates/t*/weights.safetensors"))[0]
    name = victim.parent.name
    flip(victim)
    notes = Notes()
    study = searched.parent / "study.py"
    run.search(study, out=searched, reporter=notes, **(SETTINGS | {"budget": 6}))
    (said,) = [note for note in notes.notes if "altered" in note]
    assert f"{name} is left out" in said
    assert "\n" not in said
    store = Store(searched)
    front = json.loads((searched / "front.json").read_text())
    assert name not in {entry["name"] for entry in front["front"]}
    children = [store.load_candidate(n) for n in store.candidate_names() if n in ("t004", "t005")]
    assert children
    assert name not in {child.parent for child in children}


def test_altered_dense_weights_are_an_error(searched: Path) -> None:
    flip(searched / "dense" / "weights.safetensors")
    with pytest.raises(AutopruneError, match=r"dense/weights\.safetensors must be as .*--fresh"):
        run.search(searched.parent / "study.py", out=searched, **SETTINGS)


def test_an_altered_record_of_a_candidate_is_an_error(searched: Path) -> None:
    file = sorted(searched.glob("candidates/t*/candidate.json"))[0]
    value = json.loads(file.read_text())
    value["score"]["valid"] = 1.0
    file.write_text(json.dumps(value))
    with pytest.raises(AutopruneError, match=r"candidate\.json must be .*altered.*--fresh"):
        run.search(searched.parent / "study.py", out=searched, **SETTINGS)
