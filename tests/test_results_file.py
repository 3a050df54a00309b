"""Each benchmark writes its own section of RESULTS.md, and touches no other."""

import importlib
import re
from pathlib import Path

import pytest
from results_file import RESULTS, wrapped, write_section

FILE = """# Results

What they were taken on.

## First

Old figures.

### Part

More of them.

## First of all

Others.

## Last

```
last
```
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "RESULTS.md"
    path.write_text(FILE)
    return path


def test_a_section_takes_the_place_of_the_one_of_its_title(file: Path) -> None:
    write_section("First", "\nNew.\n\n", file=file)
    old = "Old figures.\n\n### Part\n\nMore of them.\n"
    assert file.read_text() == FILE.replace(old, "New.\n")


def test_the_last_section_can_be_replaced(file: Path) -> None:
    write_section("Last", "New.", file=file)
    assert file.read_text() == FILE.replace("```\nlast\n```", "New.")


def test_a_section_that_is_not_there_comes_at_the_end(file: Path) -> None:
    write_section("Of all", "New.\n\n### Part\n\nMore.", file=file)
    assert file.read_text() == f"{FILE}\n## Of all\n\nNew.\n\n### Part\n\nMore.\n"


@pytest.mark.parametrize("title", ["First", "First of all", "Last", "Another (1.5 x)"])
def test_writing_again_changes_nothing(file: Path, title: str) -> None:
    write_section(title, r"| \1 | a \g<0> |", file=file)
    once = file.read_text()
    write_section(title, r"| \1 | a \g<0> |", file=file)
    assert file.read_text() == once
    assert r"| \1 | a \g<0> |" in once


def test_a_heading_at_the_very_end_is_found(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text("# Results\n\n## Empty")
    write_section("Empty", "New.", file=file)
    assert file.read_text() == "# Results\n\n## Empty\n\nNew.\n"


def test_paragraphs_are_wrapped_between_words() -> None:
    lines = wrapped("half-hearted " * 30).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 120
    assert all(line.endswith("hearted") for line in lines)


SECTIONS = re.findall(
    r"^## (.+)\n\n`python benchmarks/(\w+)\.py", RESULTS.read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("title", "benchmark"), SECTIONS)
def test_a_benchmark_replaces_the_section_that_is_its_own(title: str, benchmark: str) -> None:
    module = importlib.import_module(benchmark)
    assert title in {text for name, text in vars(module).items() if name.endswith("TITLE")}


def test_benchmarks_have_sections() -> None:
    assert len(SECTIONS) > 5
    assert len({title for title, _ in SECTIONS}) == len(SECTIONS)
