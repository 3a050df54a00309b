"""What a person sees: `autoprune ui` in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_SECONDS = 60
QUIET_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "autoprune", "ui", str(finished_search), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


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


def test_the_mlflow_ui_shows_the_search_and_its_trials(address: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    picture = Path(os.environ.get("AUTOPRUNE_UI_PICTURE", tmp_path / "mlflow.png"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/#/experiments/1/runs")
        # The trials are folded up under their search; the assistant takes a third of the width.
        page.locator(".ag-row button").first.wait_for(timeout=60_000)
        if page.get_by_label("Close").count():
            page.get_by_label("Close").last.click()
        page.locator(".ag-row button").first.click()
        page.get_by_text("t000 ", exact=False).first.wait_for(timeout=30_000)
        text = page.inner_text("body")
        page.screenshot(path=str(picture))
        browser.close()
    assert sum(f"t{number:03d} " in text for number in range(3)) == 3
    assert picture.stat().st_size > 10_000


def test_the_ui_listens_on_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    found = [c for c in psutil.net_connections(kind="inet") if c.laddr and c.laddr.port == port]
    assert {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
