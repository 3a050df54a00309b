"""The report in a real browser: sorted, filtered, picked from; no network is asked for a thing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fabricate import fabricate

from autoprune.results.report.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_report(fabricate(folder / "out", trials=60, groups=12), folder / "report.html")


@contextmanager
def opened(browser: Browser, report: Path, *, width: int = 1280, **context: Any) -> Iterator[Page]:
    """Open a report; when it is left, nothing has gone wrong and nothing was asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **context)
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.locator("html[data-ready=true]").wait_for()
    page.locator("#front .chart svg").wait_for()
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    page.close()


def column(page: Page, number: int) -> list[str]:
    cells = page.locator(f"#trials tbody tr td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace(",", "")) for text in texts if text[0].isdigit()]


def test_the_table_sorts_and_filters(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        page.get_by_role("button", name="Show all 60").click()
        page.get_by_role("button", name="Parameters", exact=True).click()
        sizes = numbers(column(page, 4))
        assert len(sizes) == 60
        assert sizes == sorted(sizes)
        assert page.locator("#trials th[aria-sort=ascending]").inner_text().startswith("Parameters")
        page.get_by_role("button", name="Parameters", exact=True).click()
        assert numbers(column(page, 4)) == sorted(sizes, reverse=True)

        page.get_by_label("Filter trials by state").select_option("stopped")
        assert set(column(page, 2)) == {"stopped"}
        page.get_by_label("Filter trials by state").select_option("")
        page.get_by_label("Only trials on the front").check()
        assert len(column(page, 1)) == page.locator("#front circle.front[role=button]").count()
        page.get_by_label("Filter trials by text").fill("t0 taylor")
        assert set(column(page, 10)) == {"taylor"}
        page.get_by_label("Filter trials by text").fill("no such trial")
        assert column(page, 1) == ["No trial fits. Clear the filters to see all."]


def test_a_model_is_picked_by_click_by_key_and_from_the_table(
    browser: Browser, report: Path
) -> None:
    with opened(browser, report) as page:
        title = page.locator("#model-title")
        points = page.locator("#front circle.front[role=button]")
        last = points.nth(points.count() - 1)
        name = last.get_attribute("data-name")
        last.click()
        assert title.inner_text() == f"Model {name}"
        page.locator(f"#front circle[data-name={name}]").focus()
        page.keyboard.press("ArrowLeft")
        before = points.nth(points.count() - 2).get_attribute("data-name")
        assert title.inner_text() == f"Model {before}"
        assert page.evaluate("document.activeElement.dataset.name") == before

        page.locator("#trials tbody tr button").nth(3).click()
        assert title.inner_text() == "Model t003"
        assert page.locator("#model .bars .label").count() == 12
        assert page.locator("#trials tr[aria-selected=true]").get_attribute("data-name") == "t003"
        page.locator("[data-pick]").first.click()
        card = page.locator(".card .figure").first.inner_text().split()[0]
        assert page.locator("#model dd").first.inner_text().split()[0] == card
        assert "autoprune.load(" in page.locator("#model pre").first.inner_text()
        assert "Cut from" in page.locator("#model .made").inner_text()


def test_the_theme_is_the_systems_until_it_is_chosen(browser: Browser, report: Path) -> None:
    def ground(page: Page) -> float:
        """Return how light the page is."""
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.strip("rgb()").split(",")) / (3 * 255)

    with opened(browser, report, color_scheme="dark") as page:
        assert ground(page) < 0.2
        page.get_by_role("button", name="Switch between light and dark").click()
        assert ground(page) > 0.9
    with opened(browser, report, color_scheme="light") as page:
        assert ground(page) > 0.9


CUT_OFF = """() => {
  const wide = document.documentElement.clientWidth;
  const free = (n) => !n.closest('.wide, pre') && !n.matches('.skip, #tip, option, optgroup');
  return [...document.querySelectorAll('body *')]
    .filter((n) => n.checkVisibility() && free(n))
    .map((n) => [n, n.getBoundingClientRect()])
    .filter(([, box]) => box.width && (box.right > wide + 1 || box.left < -1))
    .map(([n]) => `${n.tagName} ${n.textContent.slice(0, 40)}`);
}"""
"""Names what reaches beyond the page's sides, and does not scroll by itself."""
SCROLLS = """() => [...document.querySelectorAll('.wide')]
  .filter((n) => n.scrollWidth > n.clientWidth).map((n) => n.textContent.slice(0, 60))"""
"""Names tables that are wider than the page."""
OVERLAPS = """() => {
  const kinds = 'h1, h2, h3, p, dt, dd, button, summary, pre, select';
  const boxes = [...document.querySelectorAll(kinds)]
    .filter((n) => n.checkVisibility() && !n.closest('.code') && !n.matches('.skip'))
    .map((n) => [n, n.getBoundingClientRect()]);
  const aside = (p, q) => p.right <= q.left + 1 || q.right <= p.left + 1;
  const above = (p, q) => p.bottom <= q.top + 1 || q.bottom <= p.top + 1;
  const name = (n) => n.textContent.slice(0, 30);
  const found = [];
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const within = a.contains(b) || b.contains(a);
    if (!within && !aside(p, q) && !above(p, q)) found.push(`${name(a)} | ${name(b)}`);
  }));
  return found;
}"""
"""Names texts that lie on each other."""


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_cut_off_or_overlaps(width: int, browser: Browser, report: Path) -> None:
    with opened(browser, report, width=width) as page:
        page.locator("details summary").first.click()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        assert page.evaluate(CUT_OFF) == []
        assert page.evaluate(SCROLLS) == []
        assert page.evaluate(OVERLAPS) == []


def test_hostile_names_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    out = fabricate(tmp_path / "out", name=HOSTILE, group=HOSTILE + "{}")
    with opened(browser, write_report(out), width=390) as page:
        assert page.locator("h1").inner_text() == HOSTILE
        assert HOSTILE in page.locator("#model .bars").inner_text()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_search_without_a_front_says_why(browser: Browser, tmp_path: Path) -> None:
    out = fabricate(tmp_path / "out", exported=False)
    with opened(browser, write_report(out)) as page:
        assert "no front was exported" in page.locator(".notice").inner_text()
        assert page.locator("#trials tbody tr").count() == 20
        assert "not exported" not in page.locator("#model").inner_text()
