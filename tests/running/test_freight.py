"""Files that travel arrive as they were sent, and an agent's folder holds nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import copy, open_folder

from autoprune.running.agent import Agent, Order, Setup
from autoprune.running.executor import Done, Failed, Opening, Progress, reference
from autoprune.running.freight import (
    Freight,
    Luggage,
    Piece,
    Sender,
    TornError,
    files_in,
    packed,
    relocated,
    unpack,
)

FREIGHT = Freight(needs=("a", "in"), leaves=("out",), keeps=("saved",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the driver's folder."""
    root = tmp_path / "driver"
    (root / "in").mkdir(parents=True)
    (root / "a").write_bytes(b"one ")
    (root / "in" / "b").write_bytes(b"two")
    (root / "in" / ".half").write_bytes(b"?")
    (root / "c").write_bytes(b"not for this job")
    return root


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    agent = Agent(fetch=lambda where: where)
    yield agent
    agent.close()
    assert not list(tmp_path.glob("autoprune-*/*")), "an agent left something behind"


def setup(root: Path) -> Setup:
    opening = Opening(function=reference(open_folder), spec={"folder": str(root)})
    return Setup(root=str(root), opening=opening)


def order(root: Path, **changed: Any) -> Order:
    sender = Sender(lambda piece: piece)
    made = Order(
        job="copy",
        function=reference(copy),
        arguments={"sources": ["a", "in/b"], "target": "out/c"},
        freight=FREIGHT,
        pieces={name: sender.piece(file) for name, file in files_in(root, FREIGHT.needs)},
    )
    return replace(made, **changed)


def test_a_job_finds_what_it_needs_and_nothing_else_and_what_it_leaves_comes_back(
    root: Path, agent: Agent
) -> None:
    began = agent.begin(setup(root), order(root))
    assert isinstance(began.event, Progress)
    here = Path(began.event.value["folder"])
    assert here != root
    going = agent.answer(True)
    assert going.files.keys() == {"saved/half"}
    ended = agent.answer(True)
    assert ended.event == Done(job="copy", value={"there": ["a", "in/b"]})
    assert {name: piece.content for name, piece in ended.files.items()} == {"out/c": b"one two"}
    assert not (root / "out").exists()  # it is the driver's turn

    (root / "a").write_bytes(b"three ")
    agent.begin(setup(root), order(root))
    agent.answer(True)
    again = agent.answer(True)
    assert again.event == Done(job="copy", value={"there": ["a", "in/b"]})
    assert again.files["out/c"].content == b"three two"


def test_what_the_node_has_already_is_not_fetched_again(root: Path, agent: Agent) -> None:
    fetched: list[Piece] = []
    agent._fetch = lambda piece: fetched.append(piece) or piece  # type: ignore[func-returns-value]
    for _ in range(2):
        agent.begin(setup(root), order(root))
        agent.answer(True)
        agent.answer(True)
    assert len(fetched) == 2


def test_a_file_that_was_altered_on_its_way_is_not_written(root: Path, agent: Agent) -> None:
    good = packed(root / "a")
    torn = Piece(sha256=good.sha256, content=b"altered")
    pieces = {"a": (good.sha256, torn)}
    failed = agent.begin(setup(root), order(root, pieces=pieces)).event
    assert isinstance(failed, Failed)
    assert (failed.died, failed.stops) == (True, False)
    assert "a must arrive as it was sent" in failed.cause
    assert isinstance(agent.begin(setup(root), order(root)).event, Progress)


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "in/../../out", ""])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    piece = Piece(sha256=hashlib.sha256(b"x").hexdigest(), content=b"x")
    with pytest.raises(TornError):
        unpack(inside, name, piece)
    assert not list(tmp_path.rglob("out"))


def test_folders_of_agents_that_were_killed_are_deleted(
    root: Path, agent: Agent, tmp_path: Path
) -> None:
    killed = Agent(fetch=lambda where: where)
    killed.begin(setup(root), order(root))
    assert killed._home is not None
    assert killed._lock is not None
    assert killed._executor is not None
    killed._executor.close()
    killed._lock.close()  # as the system does when a process is gone
    assert killed._home.exists()
    agent.begin(setup(root), order(root))
    assert not killed._home.exists()
    assert agent._home is not None
    assert agent._home.exists()


# --- luggage ------------------------------------------------------------------------------------


def test_code_that_is_not_on_the_machine_is_laid_out_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "package").mkdir(parents=True)
    (home / "study.py").write_text("study = 1")
    (home / "package" / "__init__.py").write_text("")
    files = {name: packed(home / name) for name in ("study.py", "package/__init__.py")}
    luggage = Luggage(folders={str(home): files})
    assert luggage.laid_out(tmp_path / "node") == {str(home): str(home)}
    (home / "study.py").write_text("study = 2")
    placed = luggage.laid_out(tmp_path / "node")
    assert placed == {str(home): str(tmp_path / "node" / "0")}
    assert (tmp_path / "node" / "0" / "study.py").read_text() == "study = 1"
    assert (tmp_path / "node" / "0" / "package" / "__init__.py").exists()


def test_paths_in_a_spec_follow_the_innermost_folder() -> None:
    folders = {"/a": "/x", "/a/b": "/y"}
    spec = {"one": "/a/c", "two": ["/a/b/d", "/ab", 1, None], "three": "a/b"}
    assert relocated(spec, folders) == {
        "one": "/x/c",
        "two": ["/y/d", "/ab", 1, None],
        "three": "a/b",
    }
