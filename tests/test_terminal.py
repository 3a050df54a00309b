"""How a search looks: plain lines in a pipe, a picture in a terminal, nothing wider than it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autoprune import terminal
from autoprune.progress import EndedTrial, FrontPoint, RunningTrial, Stage, Status
from autoprune.results.result import Model, SearchResult


def ended(state: str = "complete", cause: str = "") -> EndedTrial:
    return EndedTrial(
        name="t007",
        state=state,
        params=1_500,
        valid=0.9812,
        parent="t003",
        criterion="taylor",
        cause=cause,
    )


def status(**changes: object) -> Status:
    values = {
        "stage": "search",
        "done": 8,
        "total": 50,
        "metric": "accuracy",
        "dense_params": 150_000,
        "dense_valid": 0.99,
        "running": [RunningTrial(name="t008", params=1_200, epoch=3, epochs=20, valid=0.91)],
        "front": [
            FrontPoint(f"t{i:03d}", 1_000 * (i + 1), 0.9 + i / 1_000, 0.00125) for i in range(40)
        ],
        "eta_seconds": 125.0,
    }
    return Status(**(values | changes))  # type: ignore[arg-type]


def plain() -> tuple[terminal.PlainReporter, io.StringIO]:
    file = io.StringIO()
    return terminal.PlainReporter(Console(file=file, width=80)), file


def test_plain_says_a_stage_once_and_a_line_a_trial() -> None:
    reporter, file = plain()
    reporter.update(status())
    reporter.update(status(ended=ended()))
    assert file.getvalue().splitlines() == [
        "Search",
        "[8/50] t007 complete: 1,500 params (1.0%), accuracy 0.9812, taylor, from t003, "
        "2 min 05 s left",
    ]


def test_plain_says_a_latency_where_there_is_one() -> None:
    reporter, file = plain()
    reporter.update(status(ended=replace(ended(), latency=0.0123456)))
    assert "accuracy 0.9812, 12.3 ms, taylor" in file.getvalue()


def model(name: str, latency_ms: float | None) -> Model:
    return Model(
        name=name, trial=1, params=10, macs=1, size_bytes=1, valid=0.5, test=None,
        path=name, latency_ms=latency_ms,
    )  # fmt: skip


@pytest.mark.parametrize("measured", [True, False])
def test_the_front_shows_latency_and_its_share_when_it_was_measured(
    measured: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, small = model("dense", 2.0 if measured else None), model("t1", 0.5 if measured else None)
    terminal.print_front(
        SearchResult(
            out=Path("out"), study="s", metric="accuracy", higher_is_better=True, dense=dense,
            front=(small,), trials={},
        )
    )  # fmt: skip
    text = capsys.readouterr().out
    assert ("latency" in text) is measured
    assert ("0.500 ms" in text and "25%" in text) is measured


@pytest.mark.parametrize("within", [0.614, None])
def test_the_summary_says_how_good_proxies_were(
    within: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"within_sizes": within, "pooled": 0.9, "bins": 3, "binned": 14, "candidates": 20}
    terminal.print_front(
        SearchResult(
            out=Path("out"), study="s", metric="accuracy", higher_is_better=True,
            dense=model("dense", None), front=(model("t1", None),), trials={},
            proxies={"epoch0": found},
        )
    )  # fmt: skip
    text = capsys.readouterr().out
    assert ("within sizes: epoch0 0.61 (14 trials in 3 sizes)" in text) is (within is not None)
    assert "0.9 " not in text


def test_plain_says_why_a_trial_failed() -> None:
    reporter, file = plain()
    reporter.update(status(ended=ended("failed", "the loss became nan")))
    assert file.getvalue().splitlines()[-1] == "[8/50] t007 failed: the loss became nan"


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_picture_fits_the_terminal_and_shows_what_matters(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    console.print(terminal._picture(status()))
    text = file.getvalue()
    for part in ("8/50", "2 min 05 s left", "150,000 params", "t008", "3/20", "t000", "1.25 ms"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= width
    # A long front is thinned out, not scrolled off the screen.
    assert sum(line.startswith("t0") for line in text.splitlines()) <= 14


def test_notes_stay_on_the_screen_in_every_mode() -> None:
    for kind in (terminal.TerminalReporter, terminal.PlainReporter, terminal.LiveReporter):
        file = io.StringIO()
        with kind(Console(file=file, width=40)) as reporter:
            reporter.note("MLflow could not be opened: a reason that is longer than a line")
        assert "a reason that is longer than a line" in file.getvalue()


def test_no_live_picture_in_ci_or_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert isinstance(terminal.reporter_for(quiet=False), terminal.PlainReporter)
    quiet = terminal.reporter_for(quiet=True)
    assert type(quiet) is terminal.TerminalReporter


def test_the_eta_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("autoprune.progress.time.monotonic", lambda: now[0])
    stage = Stage("search", 50, 10)
    assert stage.eta(10) is None
    now[0] += 20
    assert stage.eta(20) == pytest.approx(60)  # 2 s a trial, 30 left
