"""What a person sees: `autoprune ui` in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import start_cli
from mlflow import MlflowClient
from mlflow.entities import Run

from autoprune.results.mlflow_view import view_path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_SECONDS = 120
QUIET_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def run(*arguments: str, cwd: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "autoprune", *arguments], cwd=cwd, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search; `AUTOPRUNE_UI_SEARCH` names one to look at instead."""
    given = os.environ.get("AUTOPRUNE_UI_SEARCH")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("ui")
    run(
        "search",
        "starter",
        "--budget",
        "3",
        "--workers",
        "0",
        "--out",
        "out",
        "--quiet",
        cwd=folder,
    )
    return folder / "out"


@pytest.fixture(scope="module")
def address(finished_search: Path) -> Iterator[str]:
    server, url = start_ui(finished_search)
    try:
        wait_for(url)
        yield url
    finally:
        server.terminate()
        server.communicate()


def start_ui(out: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command on a free port; return its process, and where it will answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return start_cli("ui", out, "--port", port, cwd=out), f"http://127.0.0.1:{port}"


def wait_for(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 1200})
    page.set_default_timeout(60_000)
    yield page
    page.close()


@pytest.fixture(scope="module")
def runs(finished_search: Path) -> dict[str, Run]:
    """The runs by their trial, the search's own under ''."""
    client = MlflowClient(f"sqlite:///{finished_search}/mlflow.db")
    experiment = client.get_experiment_by_name("autoprune").experiment_id
    return {r.data.tags.get("autoprune.trial", ""): r for r in client.search_runs([experiment])}


def picture_of(page: Any, name: str) -> None:
    """Keep a picture of a page, where somebody wants to look at it."""
    folder = os.environ.get("AUTOPRUNE_UI_PICTURES")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def without_assistant(page: Any) -> None:
    """Close the assistant, which takes a third of the width."""
    if page.get_by_label("Close").count():
        page.get_by_label("Close").last.click()


def test_the_view_of_the_search_has_its_trials_and_their_columns(
    address: str, page: Any, runs: dict[str, Run]
) -> None:
    page.goto(address + view_path("1"))
    page.get_by_text(f"{len(runs)} matching runs").wait_for()
    page.get_by_text("dense 100% params").first.wait_for()
    without_assistant(page)
    for run in runs.values():  # the table is filled row by row
        page.get_by_text(run.info.run_name).first.wait_for()
    text = page.inner_text("body")
    picture_of(page, "mlflow-runs")
    for name in ("valid", "params_fraction", "params"):
        assert name in text
    # By default the largest one comes first: the dense model, then what is cut from it.
    assert text.index("dense 100% params") < text.index("t000 ")


def test_runs_are_filtered_by_whether_they_are_on_the_front(
    address: str, page: Any, runs: dict[str, Run]
) -> None:
    front = [r.info.run_name for r in runs.values() if r.data.tags.get("front") == "true"]
    assert 0 < len(front) < len(runs)
    page.goto(address + view_path("1"))
    page.get_by_text(f"{len(runs)} matching runs").wait_for()
    search = page.get_by_placeholder("metrics.rmse < 1")
    search.fill("tags.front = 'true'")
    search.press("Enter")
    page.get_by_text(f"{len(front)} matching run").wait_for()
    page.get_by_text("dense 100% params").first.wait_for(state="detached")
    for name in front:
        page.get_by_text(name[:12]).first.wait_for()


def test_the_search_s_run_says_what_is_worth_a_look_and_shows_the_front(
    address: str, page: Any, runs: dict[str, Run]
) -> None:
    parent = runs[""]
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/#/experiments/1/runs/{parent.info.run_id}?workflowType=machine_learning")
    page.get_by_text("of the dense model").or_(page.get_by_text("the dense model has")).wait_for()
    without_assistant(page)
    more = page.get_by_text("Show more")
    if more.count():
        more.first.click()
    # Each part of the page is fetched on its own, in whatever order the server answers.
    children = [re.escape(r.info.run_name) for key, r in runs.items() if key]
    for expected in ("best score", "hypervolume_by_trial", re.compile("|".join(children))):
        page.get_by_text(expected).first.wait_for()
    picture_of(page, "mlflow-search")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("front.png").click()
    picture = page.locator("img[src*='front.png'], .image-outer-container img, img[src^='blob:']")
    picture.first.wait_for()
    width = "(image) => image.naturalWidth"
    page.wait_for_function(
        "(i) => i.complete && i.naturalWidth > 0", arg=picture.first.element_handle()
    )
    assert picture.first.evaluate(width) > 300
    picture_of(page, "mlflow-front")
    assert errors == []


def test_the_ui_listens_on_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    found = [c for c in psutil.net_connections(kind="inet") if c.laddr and c.laddr.port == port]
    assert {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["sigint", "sigterm"])
def test_a_signal_ends_the_ui_and_its_server_in_a_few_words(
    finished_search: Path, number: signal.Signals
) -> None:
    process, url = start_ui(finished_search)
    wait_for(url)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in complaints
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
