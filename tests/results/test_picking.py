"""Which model is picked, what is said if there is none, and what becomes of its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fronts import FRONT, write_front
from helpers import environment, run_cli

from autoprune.errors import AutopruneError
from autoprune.pruning.files import read_json, write_json
from autoprune.results import handover
from autoprune.results.picking import pick


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_front(tmp_path_factory.mktemp("picking") / "out")


@pytest.mark.parametrize(
    ("asked", "picked", "choice"),
    [
        ({}, "t011", "best"),
        ({"max_params": "9k"}, "t003", "best"),
        ({"max_params": 59_999}, "t003", "best"),
        ({"max_latency": "6ms"}, "t011", "best"),
        ({"max_latency": "5999us"}, "t003", "best"),
        ({"min_accuracy": "96%"}, "t003", "smallest"),
        ({"min_accuracy": 0.97, "choose": "best"}, "t011", "best"),
        ({"max_loss": 2}, "t003", "smallest"),
        ({"max_loss": "1.9"}, "t011", "smallest"),
        ({"choose": "smallest"}, "t011", "smallest"),
        ({"choose": "smallest", "max_loss": 9}, "t007", "smallest"),
        ({"choose": "smallest", "min_accuracy": 0.1}, "t007", "smallest"),
        ({"choose": "knee"}, "t003", "knee"),
        ({"choose": "knee", "max_params": "1k"}, "t007", "knee"),
        ({"max_params": "0.05M", "min_accuracy": 0.9, "max_latency": "0.5ms"}, "t007", "best"),
    ],
)
def test_limits_combine_and_the_best_of_the_rest_is_picked(
    out: Path, asked: Mapping[str, Any], picked: str, choice: str
) -> None:
    found = pick(out, **asked)
    assert (found.model.name, found.choice) == (picked, choice)
    assert found.folder == out / "front" / picked


def test_where_lower_is_better_a_limit_is_an_upper_one(tmp_path: Path) -> None:
    front = {"t001": (100, 4.0), "t002": (1_000, 2.02), "t003": (5_000, 1.9)}
    out = write_front(
        tmp_path / "out",
        front,
        dense=(9_000, 2.0),
        exports=False,
        metric="mae",
        higher_is_better=False,
    )
    assert pick(out, min_accuracy=2.5).model.name == "t002"
    assert pick(out, choose="smallest").model.name == "t002"  # a point is a hundredth of 2.0
    assert pick(out).model.name == "t003"
    with pytest.raises(
        AutopruneError, match=r"a score of at most 1.5: the nearest are t003 .*t002"
    ):
        pick(out, min_accuracy=1.5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_params": 100}, ("at most 100 parameters", "t007 (1,000", "t003 (9,000")),
        ({"min_accuracy": "99%"}, ("at least 0.99", "t011 (60,000", "and t003")),
        ({"max_latency": "1us"}, ("at most 0.001 ms", "t007", "0.1 ms", "t003")),
        ({"max_loss": 0}, ("at most 0 points of loss", "t011", "t003")),
        ({"max_params": "2k", "min_accuracy": 0.98}, ("2,000 parameters and a score", "t007")),
    ],
)
def test_if_there_is_none_the_nearest_two_are_named(
    out: Path, asked: Mapping[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(AutopruneError) as raised:
        pick(out, **asked)
    said = str(raised.value)
    assert all(word in said for word in words), said
    assert sum(name in said for name in FRONT) == 2, said


def test_an_empty_front_and_missing_latencies_are_named(tmp_path: Path) -> None:
    empty = write_front(tmp_path / "empty", {})
    with pytest.raises(AutopruneError, match="empty is empty: no trial was completed"):
        pick(empty)
    old = write_front(tmp_path / "old", exports=False)
    front = read_json(old / "front.json")
    for model in front["front"]:
        del model["latency_ms"]
    write_json(old / "front.json", front)
    with pytest.raises(AutopruneError, match="`autoprune bench "):
        pick(old, max_latency=1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_params": "50kb"}, ("max_params", "50k or 1.5M", "unknown unit 'kb'")),
        ({"max_params": "many"}, ("max_params", "'many'")),
        ({"max_params": 0}, ("max_params", "more than 0")),
        ({"max_latency": "2min"}, ("max_latency", "unknown unit 'min'", "ms, us")),
        ({"max_loss": -1}, ("max_loss", "at least 0")),
        ({"min_accuracy": "nan"}, ("min_accuracy", "'nan'")),
        ({"choose": "kne"}, ("Unknown choice 'kne'", "Did you mean 'knee'")),
    ],
)
def test_what_cannot_be_meant_is_refused(
    out: Path, asked: Mapping[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(AutopruneError) as raised:
        pick(out, **asked)
    assert all(word in str(raised.value) for word in words), raised.value


# --- the copy -----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_copy_has_every_file_of_the_export(out: Path, tmp_path: Path) -> None:
    found = pick(out, max_params="9k", to=tmp_path / "new" / "model")
    assert found.folder == tmp_path / "new" / "model"
    assert not found.replaced
    assert contents(found.folder) == contents(out / "front" / "t003")
    assert [path.name for path in found.folder.parent.iterdir()] == ["model"]


def test_an_earlier_export_is_replaced_only_if_that_is_asked_for(out: Path, tmp_path: Path) -> None:
    to = tmp_path / "model"
    pick(out, max_params="9k", to=to)
    with pytest.raises(AutopruneError, match=r"holds an exported model.*--overwrite"):
        pick(out, max_params="1k", to=to)
    assert contents(to) == contents(out / "front" / "t003")
    assert pick(out, max_params="1k", to=to, overwrite=True).replaced
    assert contents(to) == contents(out / "front" / "t007")


def test_nothing_else_is_ever_replaced(out: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("three years of work")
    pick(out, to=tmp_path / "mixed")
    (tmp_path / "mixed" / "thesis.txt").write_text("three more years")
    for name in ("thesis", "mixed"):
        with pytest.raises(AutopruneError, match=r"other files: thesis\.txt"):
            pick(out, to=tmp_path / name, overwrite=True)
    with pytest.raises(AutopruneError, match="is a file"):
        pick(out, to=tmp_path / "thesis" / "thesis.txt", overwrite=True)
    with pytest.raises(AutopruneError, match="outside the search's folder"):
        pick(out, to=out / "front" / "t007", overwrite=True)
    with pytest.raises(AutopruneError, match="can be written"):
        pick(out, to=tmp_path / "thesis" / "thesis.txt" / "model")


def test_a_copy_that_fails_leaves_what_was_there(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "model"
    pick(out, max_params="9k", to=to)

    def broken(fresh: Path, target: Path) -> Path:
        if fresh.name == "model" and target == to:
            raise OSError(28, "No space left on device")
        return rename(fresh, target)

    rename = Path.rename
    monkeypatch.setattr(handover.Path, "rename", broken)
    with pytest.raises(AutopruneError, match="No space left"):
        pick(out, max_params="1k", to=to, overwrite=True)
    monkeypatch.undo()
    assert contents(to) == contents(out / "front" / "t003")


@pytest.mark.parametrize("file", ["model.safetensors", "model.onnx", "plan.json"])
@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_an_export_that_was_altered_is_not_handed_on(
    out: Path, tmp_path: Path, file: str, fault: str
) -> None:
    mine = tmp_path / "out"
    shutil.copytree(out, mine)
    path = mine / "front" / "t011" / file
    path.unlink() if fault == "missing" else path.write_bytes(path.read_bytes() + b" {}")
    with pytest.raises(AutopruneError, match=file):
        pick(mine, to=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_front_model_without_its_export_is_named(tmp_path: Path) -> None:
    out = write_front(tmp_path / "out", exports=False)
    with pytest.raises(AutopruneError, match=r"no folder .*t011"):
        pick(out, to=tmp_path / "model")


# --- the command --------------------------------------------------------------------------------


SECONDS = 1.0
"""What reading a front of 1,000 trials may take in all, of a core's time."""
MEASURED = """\
import json, resource, sys
from autoprune import cli
try:
    cli.main()
except SystemExit as ended:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = spent.ru_utime + spent.ru_stime
    heavy = [name for name in ("torch", "mlflow", "optuna", "sklearn") if name in sys.modules]
    print(json.dumps({"code": ended.code, "seconds": seconds, "heavy": heavy}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command", ["front", "front --json", "pick --knee", "pick --max-params 50k --json", "compare"]
)
def test_a_front_of_a_thousand_trials_is_read_at_once(large: Path, command: str) -> None:
    name, *options = command.split()
    folders = [str(large)] * (2 if name == "compare" else 1)
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, name, *folders, *options],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    spent = json.loads(run.stderr.splitlines()[-1])
    assert spent["code"] == 0
    assert "t500" in run.stdout or name != "front"
    assert spent["heavy"] == []
    assert spent["seconds"] < SECONDS


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    front = {f"t{i:03d}": (100 * (i + 1), 0.5 + i / 2_500) for i in range(1_000)}
    return write_front(tmp_path_factory.mktemp("large") / "out", front, exports=False)


def test_the_command_says_what_it_picked_and_how_to_load_it(out: Path, tmp_path: Path) -> None:
    run = run_cli("pick", out, "--max-params", "9k", "--to", "here", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "t003: 9,000 parameters" in run.stdout
    assert "Copied to here, checksums right." in run.stdout
    assert 'torch.export.load("here/model.pt2").module()' in run.stdout
    again = run_cli("pick", out, "--knee", "--to", "here", "--overwrite", "--json", cwd=tmp_path)
    said = json.loads(again.stdout)
    assert (said["name"], said["replaced"], said["choice"]) == ("t003", True, "knee")
