"""Take the documentation's pictures of a report: at two widths, light and dark, and its beginning.

python docs/pictures.py OUT        # a search's output folder; or `make docs-images`
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from autoprune.results.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = {1280: 900, 390: 844}
"""Heights of the window, by its width."""


BEGINNING = (1280, 1120)
"""Width and height of what the README shows."""


def take(browser: Browser, report: Path, size: tuple[int, int], scheme: str, to: Path) -> None:
    """Take a picture of the page: all of it, or what a window of that size shows at first."""
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        device_scale_factor=1,
    )
    page.goto(report.as_uri())
    page.locator("html[data-ready=true]").wait_for()
    page.locator("#front svg .front").first.wait_for()
    page.screenshot(path=str(to), full_page=size != BEGINNING)
    page.close()
    with Image.open(to) as picture:  # a page of text needs few colours
        few = picture.convert("RGB").quantize(160, method=Image.Quantize.MAXCOVERAGE)
    few.save(to, optimize=True)


def main(out: str) -> None:
    images = Path(__file__).with_name("images")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = write_report(out, Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                size = (width, WIDTHS[width])
                take(browser, report, size, scheme, images / f"report-{width}-{scheme}.png")
        take(browser, report, BEGINNING, "light", images / "report.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
