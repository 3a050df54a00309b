"""How a search looks: plain lines in a pipe, a picture in a terminal, nothing wider than it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autoprune import picture, tables, terminal
from autoprune.plot import Plot
from autoprune.progress import EndedTrial, FrontPoint, RunningTrial, Status
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
    tables.print_front(
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
    tables.print_front(
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
    console.print(picture.picture(status()))
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


def test_the_picture_says_what_one_would_take_now() -> None:
    shown = status(front=[FrontPoint("t1", 1_000, 0.5), FrontPoint("t2", 7_500, 0.985)])
    assert picture.best_so_far(shown, dense_valid=0.99) == (
        "smallest within a point: t2, 5.0% of the params, accuracy 0.9850"
    )
    assert picture.best_so_far(shown, dense_valid=0.999) == (
        "best so far, none within a point: t2, 5.0% of the params, accuracy 0.9850"
    )


@pytest.mark.parametrize(("width", "plotted"), [(60, False), (80, True), (120, True)])
def test_the_front_is_plotted_where_there_is_room(width: int, plotted: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    front = [FrontPoint(f"t{i:03d}", 10 ** (i + 1), 0.5 + i / 10) for i in range(5)]
    console.print(picture.picture(status(front=front)))
    lines = file.getvalue().splitlines()
    assert any("└" in line for line in lines) is plotted
    assert max(len(line) for line in lines) <= width
    assert sum(line.count("●") for line in lines) == (5 if plotted else 0)
    assert sum(line.count("■") for line in lines) == plotted


def test_a_plot_does_with_ascii_where_there_is_nothing_else() -> None:
    lines = Plot(points=[(10, 0.5), (20, 0.5)], reference=(40, 0.5), plain=True).lines()
    assert "".join(lines).isascii()
    assert lines[0].count("*") == 2
    assert lines[0].endswith("#")


@pytest.mark.parametrize("points", [[], [(1, float("nan"))]])
def test_a_plot_of_nothing_is_empty(points: list[tuple[int, float]]) -> None:
    assert Plot(points=points).lines() == []


def test_no_color_is_heeded_and_nothing_is_coloured_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shown(**settings: object) -> str:
        file = io.StringIO()
        console = Console(file=file, width=80, **settings)  # type: ignore[arg-type]
        console.print(picture.picture(status()))
        return file.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    colour = re.compile(r"\x1b\[[39][0-7]m")
    assert colour.search(shown(force_terminal=True, color_system="standard"))
    assert "\x1b" not in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown(force_terminal=True, color_system="standard"))


def test_a_trial_under_way_says_when_its_parent_is_trained_first() -> None:
    trial = RunningTrial(name="t009", params=10, epoch=1, epochs=3, valid=None, doing="l1 on t004")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    console.print(picture.picture(status(running=[trial])))
    (line,) = [line for line in file.getvalue().splitlines() if line.startswith("t009")]
    assert "1/3" in line
    assert "l1 on t004" in line
