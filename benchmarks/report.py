"""The report of a large search: how long it takes to write, how large it is, when it is painted.

    python benchmarks/report.py [--trials 1000] [--groups 40] [--write]

The search is made up (tests/fabricate.py), its files are as a search writes them. `--write` puts
the table into RESULTS.md. First paint is Chromium's, of the file, in a new window.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from playwright.sync_api import sync_playwright
from results_file import wrapped, write_section

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fabricate import fabricate

TITLE = "The report of a large search"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAINTED = """() => performance.getEntriesByType('paint')
  .find((entry) => entry.name === 'first-contentful-paint')?.startTime"""
READY = "() => document.documentElement.dataset.ready && performance.now()"


def written(out: Path) -> tuple[float, float, int]:
    """Return the seconds of the command `report`, those on the CPU, and the bytes it wrote."""
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "autoprune", "report", str(out)], check=True, capture_output=True
    )
    wall, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, computed, (out / "report.html").stat().st_size


def painted(page: Path, width: int, times: int) -> tuple[list[float], list[float]]:
    """Return the seconds to first paint, and until all is drawn and can be used."""
    first, ready = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for _ in range(times):
            window = browser.new_page(viewport={"width": width, "height": 900})
            window.goto(page.as_uri())
            ready.append(window.wait_for_function(READY).json_value() / 1e3)
            first.append(window.wait_for_function(PAINTED).json_value() / 1e3)
            window.close()
        browser.close()
    return first, ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = fabricate(Path(folder) / "out", trials=options.trials, groups=options.groups)
        runs = [written(out) for _ in range(3)]
        lines = ["| | median | worst | at most |", "| --- | --- | --- | --- |"]
        lines += [
            _row("written, seconds", [run[0] for run in runs], 10),
            _row("of them on the CPU", [run[1] for run in runs]),
            _row("size, MB", [run[2] / 1e6 for run in runs], 8),
        ]
        for width in (1280, 390):
            first, ready = painted(out / "report.html", width, options.times)
            lines += [
                _row(f"first paint at {width} px, seconds", first, 2),
                _row(f"all drawn at {width} px, seconds", ready),
            ]
    print("\n".join(lines))
    if options.write:
        about = (
            f"`python benchmarks/report.py`: a search of {options.trials:,} trials and "
            f"{options.groups} groups, made up by tests/fabricate.py with the files of a real one; "
            f"`autoprune report` on it in a process of its own three times, and the page opened in "
            f"Chromium {options.times} times at each width. The machine was shared: the load was "
            f"{os.getloadavg()[1]:.0f} on {os.cpu_count()} cores, so the seconds on the CPU are "
            f"what it takes where a core is free."
        )
        write_section(TITLE, "\n".join([wrapped(about), "", *lines]))


def _row(name: str, values: list[float], limit: float | None = None) -> str:
    asked = "" if limit is None else f"{limit:g}"
    return f"| {name} | {statistics.median(values):.2f} | {max(values):.2f} | {asked} |"


if __name__ == "__main__":
    main()
