"""Files of a search that were altered or torn: mended, made anew, left out, or an error of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import UNTRACKED, leave_out_programs, write_study
from optuna.trial import FrozenTrial, TrialState

from autoprune import run
from autoprune.errors import AutopruneError
from autoprune.progress import SilentReporter
from autoprune.results.result import open_result
from autoprune.results.store import Store

pytestmark = [
    pytest.mark.usefixtures("quick_export"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

BUDGET = 4
SETTINGS: dict[str, Any] = UNTRACKED | {"budget": BUDGET, "early_stop": False}


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search beside its study file; not to be written to."""
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_programs(patch)
        run.search(write_study(folder / "study.py"), out=folder / "out", **SETTINGS)
    return folder


@pytest.fixture
def searched(original: Path, tmp_path: Path) -> Path:
    """A copy of the finished search, to be tampered with."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def again(out: Path, **changes: Any) -> list[str]:
    """Run the search once more; return what it noted."""
    notes = Notes()
    run.search(out.parent / "study.py", out=out, reporter=notes, **(SETTINGS | changes))
    return notes.notes


def trials_of(out: Path) -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="tiny", storage=storage).trials


def ended(out: Path) -> list[Any]:
    return [(t.params, t.values) for t in trials_of(out) if t.state == TrialState.COMPLETE]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


# --- the journal --------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [1, 9, 60])
def test_a_journal_whose_last_line_is_torn_is_mended(torn: int, searched: Path) -> None:
    before, journal = ended(searched), searched / "study.journal"
    content = journal.read_bytes()
    journal.write_bytes(content + content[:torn].replace(b"\n", b" "))
    journal.with_name("study.journal.lock").write_text("of a process that was killed")
    again(searched, budget=BUDGET + 1)
    assert ended(searched)[:BUDGET] == before
    assert len(ended(searched)) == BUDGET + 1
    assert journal.read_bytes().startswith(content)


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"[]", b'{"op_code": 99}', b"3"])
def test_a_journal_that_was_altered_is_an_error(line: bytes, searched: Path) -> None:
    journal = searched / "study.journal"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + line + b"\n" + b"".join(rest))
    with pytest.raises(AutopruneError, match=r"study\.journal must be .*--fresh") as said:
        again(searched)
    assert len(str(said.value).splitlines()) == 1
    assert journal.read_bytes() == first + line + b"\n" + b"".join(rest)


# --- weights ------------------------------------------------------------------------------------


def test_a_candidate_with_altered_weights_is_left_out_with_a_note(searched: Path) -> None:
    victim = sorted(searched.glob("candidates/t*/weights.safetensors"))[0]
    name = victim.parent.name
    flip(victim)
    (said,) = [note for note in again(searched, budget=6) if "altered" in note]
    assert f"{name} is left out" in said
    assert "\n" not in said
    store = Store(searched)
    front = json.loads((searched / "front.json").read_text())
    assert name not in {entry["name"] for entry in front["front"]}
    children = [store.load_candidate(n) for n in store.candidate_names() if n in ("t004", "t005")]
    assert children
    assert name not in {child.parent for child in children}


@pytest.mark.parametrize("harm", [Path.unlink, flip])
def test_without_any_candidates_weights_it_is_said_what_to_do(
    harm: Callable[[Path], object], searched: Path
) -> None:
    for file in searched.glob("candidates/*/weights.safetensors"):
        harm(file)
    with pytest.raises(AutopruneError, match=r"none has.*Raise --budget.*--fresh") as said:
        again(searched)
    assert "\n" not in str(said.value)
    again(searched, budget=BUDGET + 1)
    assert [model.name for model in open_result(searched).front] == ["t004"]


def test_altered_dense_weights_are_an_error(searched: Path) -> None:
    flip(searched / "dense" / "weights.safetensors")
    with pytest.raises(AutopruneError, match=r"dense/weights\.safetensors must be as .*--fresh"):
        again(searched)


def test_cached_scores_that_were_altered_are_measured_again(searched: Path) -> None:
    # Those that the next trial would rest on: all, as nobody knows which.
    twin = Path(shutil.copytree(searched.parent, searched.parent / "twin")) / "out"
    harmed = list(searched.glob("*/**/scores.safetensors"))
    assert harmed
    for file in harmed:
        flip(file)
    for each in (searched, twin):
        again(each, budget=BUDGET + 2)
    assert ended(searched) == ended(twin)


# --- records ------------------------------------------------------------------------------------


def test_an_altered_record_of_a_candidate_is_an_error(searched: Path) -> None:
    file = sorted(searched.glob("candidates/t*/candidate.json"))[0]
    value = json.loads(file.read_text())
    value["score"]["valid"] = 1.0
    file.write_text(json.dumps(value))
    with pytest.raises(AutopruneError, match=r"candidate\.json must be .*altered.*--fresh"):
        again(searched)


ALTERED = {
    "a candidate's record torn": ("candidates/t000/candidate.json", tear, r"candidate\.json must"),
    "the dense model's record torn": ("dense/dense.json", tear, r"dense\.json must be a readable"),
    "the dense model's record altered": (
        "dense/dense.json",
        lambda file: edit(file, lambda v: v.update(valid=0.0)),
        r"dense\.json must be .*altered.*--fresh",
    ),
    "the dense model's weights gone": (
        "dense/weights.safetensors",
        Path.unlink,
        r"dense/weights\.safetensors must be as .*--fresh",
    ),
    "the search's identity torn": ("search.json", tear, r"search\.json must be a readable"),
    "the search's identity emptied": (
        "search.json",
        lambda file: file.write_text("{}"),
        r"--out.*format",
    ),
    "the search's id lost": (
        "search.json",
        lambda file: edit(file, lambda v: v.pop("id")),
        r"search\.json must have the search's id.*--fresh",
    ),
}


@pytest.mark.parametrize("case", ALTERED)
def test_a_file_that_the_search_rests_on_is_an_error_when_it_was_altered(
    case: str, searched: Path
) -> None:
    name, harm, words = ALTERED[case]
    harm(searched / name)
    files = [p for p in searched.rglob("*") if p.is_file()]
    before = {p: p.read_bytes() for p in files if p.name not in (".lock", "origin.json")}
    with pytest.raises(AutopruneError, match=words) as said:
        again(searched)
    assert len(str(said.value).splitlines()) == 1
    for path, content in before.items():
        assert path.read_bytes().startswith(content), path


@pytest.mark.parametrize("name", ["front.json", "dense/groups.json", "front/t000/plan.json"])
def test_what_the_search_writes_anew_is_mended_by_the_same_command(
    name: str, searched: Path
) -> None:
    front = json.loads((searched / "front.json").read_text())["front"]
    if name.startswith("front/"):
        name = f"{front[0]['path']}/plan.json"
    tear(searched / name)
    again(searched)
    assert [m.name for m in open_result(searched).front] == [m["name"] for m in front]
    json.loads((searched / name).read_text())
