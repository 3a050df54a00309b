"""Records on disk: written whole, in order, marked per server, settled after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import AutopruneError
from autoprune.results.records import (
    FinishRecord,
    FrontRecord,
    ModelEntry,
    Record,
    StartRecord,
    TrialRecord,
)
from autoprune.results.spool import Destination, Spool, load_destination, save_destination

HERE = Destination.of(None, "autoprune")
THERE = Destination.of("http://host:5000", "autoprune")

START = StartRecord(params={"study": "tiny", "rate": 0.1}, tags={"seed": "0"}, time=1.5)
FINISH = FinishRecord(metrics={"epochs": 3.0}, status="FINISHED", time=9.0)


def trial(key: str, state: str = "complete") -> TrialRecord:
    return TrialRecord(
        key=key,
        run_name=f"{key} 50.0% 0.900",
        state=state,  # type: ignore[arg-type]
        params={"lr": 1e-3, "criterion": "l2", "steps": None},
        metrics={"valid": 0.9, "loss": float("inf")},
        curves={"valid": [0.1, 0.5]},
        tags={"cause": "no answer from https://bob:pw@host/x?token=abc"},
        plan={"widths": {"a": 3}},
        sparsity={"a": 0.5},
        started=2.0,
        ended=3.0,
    )


def front(*keys: str) -> FrontRecord:
    entries = [ModelEntry(key=key, folder=f"front/{key}", metrics={"test": 0.8}) for key in keys]
    return FrontRecord(models=entries, files=["front.json"], time=5.0)


def records_of(spool: Spool) -> list[Record | None]:
    return [spool.read(number) for number in spool.pending()]


def test_records_come_back_in_their_order_in_another_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", HERE)
    spool.write(START)
    spool.release(spool.hold(trial("t000")))
    spool.write(front("t000"))
    spool.write(FINISH)
    for each in (spool, Spool(tmp_path / "spool", HERE)):
        start, ended, marked, finish = records_of(each)
        assert start == START
        assert finish == FINISH
        assert isinstance(ended, TrialRecord)
        assert (ended.key, ended.params, ended.metrics) == (
            "t000",
            trial("t000").params,
            trial("t000").metrics,
        )
        assert marked == front("t000")


def test_secrets_in_urls_are_not_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HERE)
    spool.release(spool.hold(trial("t000")))
    (record,) = records_of(spool)
    assert isinstance(record, TrialRecord)
    assert record.tags["cause"] == "no answer from https://***@host/x?token=***"


def test_numbers_of_other_libraries_are_written_as_numbers(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HERE)
    spool.write(FinishRecord(metrics={"valid": np.float32(0.5)}, status="KILLED", time=1.0))
    (record,) = records_of(spool)
    assert isinstance(record, FinishRecord)
    assert record.metrics == {"valid": 0.5}


def test_each_server_has_marks_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HERE)
    spool.write(START)
    spool.write(FINISH)
    spool.mark(0)
    assert Spool(tmp_path, HERE).pending() == [1]
    assert Spool(tmp_path, THERE).pending() == [0, 1]
    assert Spool(tmp_path, Destination.of(None, "another")).pending() == [0, 1]


@pytest.mark.parametrize("cut", range(2, 7))
def test_a_mark_that_was_cut_short_marks_nothing(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path, HERE)
    for _ in range(13):
        spool.write(START)
    spool.mark(3)
    spool.mark(12)
    (file,) = tmp_path.glob("delivered-*")
    file.write_text(file.read_text()[:-cut])
    again = Spool(tmp_path, HERE)
    assert again.pending() == [n for n in range(13) if n != 3]
    again.mark(11)
    assert Spool(tmp_path, HERE).pending() == [n for n in range(13) if n not in (3, 11)]


def test_what_is_held_is_settled_by_what_the_study_knows(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HERE)
    spool.write(START)
    for key in ("t000", "t001", "t002"):
        spool.hold(trial(key))
    assert spool.pending() == [0]
    again = Spool(tmp_path, HERE)  # the process was killed
    again.settle({("t000", "complete"), ("t001", "failed")})
    _, kept = records_of(again)
    assert isinstance(kept, TrialRecord)
    assert kept.key == "t000"
    again.write(FINISH)
    assert len(Spool(tmp_path, HERE).pending()) == 3
    assert not list(tmp_path.glob("*.held"))


def test_numbers_of_held_records_are_not_given_again(tmp_path: Path) -> None:
    held = Spool(tmp_path, HERE).hold(trial("t000"))
    again = Spool(tmp_path, HERE)
    again.write(START)
    again.release(held)
    start, kept = records_of(again)[::-1]
    assert start == START
    assert isinstance(kept, TrialRecord)


def test_a_front_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HERE)
    spool.write(front("t000"))
    spool.write(FINISH)
    spool.write(front("t001"))
    assert spool.pending() == [1, 2]
    assert spool.read(0) is None
    assert records_of(Spool(tmp_path, THERE)) == [FINISH, front("t001")]


def test_a_sitting_is_over_once_a_later_record_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HERE)
    for record in (START, FINISH, START):
        spool.write(record)
    assert [spool.is_over(number) for number in (0, 1, 2)] == [True, False, False]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", json.dumps({"metrics": {}}), json.dumps({"nonsense": 1})]
)
def test_an_altered_record_is_named(tmp_path: Path, content: str) -> None:
    spool = Spool(tmp_path, HERE)
    spool.write(FINISH)
    (tmp_path / "000000-finish.json").write_text(content)
    with pytest.raises(AutopruneError, match=r"000000-finish\.json.*altered"):
        spool.read(0)


def test_a_destination_is_kept_without_its_secrets(tmp_path: Path) -> None:
    given = Destination.of("https://bob:pw@host/?key=abc", "mine")
    save_destination(tmp_path, given)
    assert load_destination(tmp_path) == given
    assert not given.whole
    text = (tmp_path / "destination.json").read_text()
    assert "pw" not in text
    assert "abc" not in text
    assert THERE.whole
    assert HERE.whole
    (tmp_path / "destination.json").write_text('{"uri": 3}')
    with pytest.raises(AutopruneError, match=r"destination\.json.*--tracking-uri"):
        load_destination(tmp_path)
