"""Every code block of README and docs runs, and what pages name is there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from code_blocks import (
    PAGES,
    PROGRAMS,
    commands,
    furnish,
    options,
    page,
    parse,
    runs_here,
    small_search,
    sources,
    split,
)
from helpers import ROOT, Here, leave_out_programs, write_study
from markdown_it import MarkdownIt
from markdown_it.token import Token

from autoprune import run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # MLflow's own
]

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What is wrong with a command line; where it is defined depends on typer's version."""
MOST_SKIPPED = 6
"""Of all blocks: what cannot run here is to stay the exception."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of an MLP that has the built-in study's name."""
    folder = tmp_path_factory.mktemp("study")
    # A weak dense model: trials of a few epochs are as good, as those of a real search are.
    dense = "train=FineTune(epochs=2, lr=1e-2, batch_size=32)"
    return write_study(folder / "my_study.py", name="digits", dense=dense, epochs=8)


@pytest.fixture(scope="module")
def searched(study: Path) -> Path:
    """Its search, which stands for every search that a page speaks of."""
    out = study.with_name("out")
    run.search(study, out=out, budget=2, workers=0, register="digits")
    return out


@pytest.fixture
def mlflow_as_before() -> Iterator[None]:
    yield
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let modules that a page writes be imported, and forget them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("registries", "mlflow_as_before", "own_modules")
@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_code_blocks_of_a_page_run(
    path: Path,
    study: Path,
    searched: Path,
    here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    document = page(path)
    texts = sources(document)
    furnish(tmp_path, texts, study=study, searched=searched)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "search", small_search)
    if not any(PROGRAMS.search(text) for text in texts):
        leave_out_programs(monkeypatch)
    document.namespace.update({"__name__": path.stem, "here": here})
    for example in document.examples():
        with subtests.test(msg=f"line {example.line}"):
            example.evaluate()


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    skips = [
        (path.name, reason)
        for path in PAGES
        for reason in re.findall(r"^<!-- skip: (.*?) -->", path.read_text(), re.MULTILINE)
    ]
    assert all(re.fullmatch(r'next ".+"', reason) for _, reason in skips), skips
    assert len(skips) <= MOST_SKIPPED, skips
    total = sum(len(sources(page(path))) for path in PAGES)
    assert total > 10 * len(skips)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_within_sentences_have_the_options_that_they_name(path: Path) -> None:
    if path.name == "reliability.md":
        pytest.skip("it shows mistakes")
    for token in _inline(path):
        if token.type == "code_inline" and re.match(r"autoprune [a-z]", token.content):
            # What is in brackets may be left out, but is there.
            command, *words = re.sub(r"[\[\]|]", " ", token.content).split()[1:]
            asked = {word for word in words if word.startswith("--")}
            assert asked <= options(command), f"{path.name}: {token.content}"


def test_the_examples_of_commands_are_parsed() -> None:
    from autoprune.cli import app

    for command in app.registered_commands:
        for example in re.split(r"\s+\|\s+", re.sub(r"^Examples?:\s+", "", command.epilog or "")):
            for words in split(example):
                parse(words[1:])


# --- how the blocks are read ---------------------------------------------------------------------


def test_commands_of_a_transcript_are_those_after_a_prompt() -> None:
    assert commands("$ autoprune front out\nmodel\na$ autoprune ui out") == [
        "autoprune front out",
        "autoprune ui out",
    ]
    assert commands("make a \\\n  b\n\nmake c") == ["make a    b", "make c"]


def test_a_line_is_split_into_its_commands() -> None:
    line = "A=1 autoprune new 'my net.py' && make test  # both"
    assert list(split(line)) == [["autoprune", "new", "my net.py"], ["make", "test"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serch", "No such command 'serch'"),
        ("search --bugdet 3", "No such option: --bugdet"),
        ("pick", "Missing parameter: out"),
        ("front out --json=3", "'--json' does not take a value"),
    ],
)
def test_a_command_that_there_is_not_is_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(line.split())


MISTAKES: tuple[tuple[str, str, type[Exception], str], ...] = (
    ("python", "1 / 0", ZeroDivisionError, "division by zero"),
    ("sh", "autoprune search --bugdet 3", UsageError, "No such option: --bugdet"),
    ("sh", "bin/autoprune search --bugdet 3", UsageError, "No such option: --bugdet"),
    ("sh", "autoprnue search", AssertionError, "autoprnue is no program that is known"),
    ("console", "$ A=1 optuna-dashbord x\nx", AssertionError, "optuna-dashbord is no program"),
    ("sh", "make tset", AssertionError, "there is no such target"),
    ("sh", "pip install 'autoprune[nothing]'", AssertionError, "there is no such extra"),
    ("sh", "python -m pip install '.[dev]' 'autoprune[ryy]'", AssertionError, "no such extra"),
    ("sh", "python -m pytst tests", AssertionError, "pytst is no module that is known"),
    ("sh", "python -m pytest tests/test_nothing.py", AssertionError, "tests/test_nothing.py is no"),
    ("sh", "python trian.py", AssertionError, "no block has written trian.py"),
    ("sh", ".ci/rnu", AssertionError, ".ci/rnu is no program that is known"),
    ("sh", "if", AssertionError, "syntax error"),
    ("json", "{", ValueError, "Expecting property name"),
    ("", "autoprune search", AssertionError, "A block's language must be one of"),
)


@pytest.mark.parametrize(("language", "block", "kind", "message"), MISTAKES)
def test_a_page_with_a_mistake_fails(
    language: str, block: str, kind: type[Exception], message: str, tmp_path: Path, here: Here
) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"# Page\n\n```{language}\n{block}\n```\n")
    document = page(file)
    document.namespace["here"] = here
    (example,) = document.examples()
    with pytest.raises(kind, match=re.escape(message)):
        example.evaluate()


def test_a_file_that_is_named_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "page.md"
    first, second = "```python\nx = 1\nfile = 'c.py'\n```", "```python\ny = x\n```"
    file.write_text(f"<!-- file: a/b.py -->\n{first}\n\n{second}\n")
    document = page(file)
    for example in document.examples():
        example.evaluate()
    assert document.namespace["y"] == 1
    assert document.namespace["file"] == "c.py"  # a page's own name
    assert (tmp_path / "a" / "b.py").read_text() == "x = 1\nfile = 'c.py'\n"
    assert not Path("c.py").exists()
    file.write_text(f"<!-- file: a/b.py -->\n\nNothing.\n\n{second}\n")
    with pytest.raises(AssertionError, match=r"a block must follow <!-- file: a/b.py"):
        page(file)


def test_searches_that_need_more_than_this_machine_are_not_run() -> None:
    assert runs_here(["search", "my_study.py", "--budget", "3"])
    assert not runs_here(["search", "my_study.py", "--engine", "ray"])
    assert not runs_here(["search", "--budget", "3"])
    assert not runs_here(["ui", "out"])


# --- links ---------------------------------------------------------------------------------------


def _tokens(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text())


def _inline(path: Path) -> Iterator[Token]:
    for token in _tokens(path):
        yield from token.children or ()


def _anchors(path: Path) -> set[str]:
    """Return the anchors that git hosts give a page's headings."""
    tokens = _tokens(path)
    titles = [b.content for a, b in pairwise(tokens) if a.tag[:1] == "h"]
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for token in _inline(path):
        link = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not link or re.match(r"(https?|mailto):", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{path.name}: {link}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_is_in_fences(path: Path) -> None:
    indented = [t.content for t in _tokens(path) if t.type == "code_block"]
    assert not indented, "a block without a fence has no language, and is not run"
