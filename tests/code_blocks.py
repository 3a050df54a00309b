"""Runs the code blocks of README and docs, a page at a time, in a folder of its own.

What a block's language means:

* ``python`` is run, all blocks of a page in one namespace. `autoprune.search` really searches, but
  two trials of an epoch, in this process, and without MLflow.
* ``sh``, ``bash`` and ``console`` (lines after ``$ `` are commands, the others what they print):
  every ``autoprune`` command is parsed by the command line itself, and run if that is cheap; every
  target of ``make``, extra of ``pip install`` and file of this project's must be there, and other
  programs must be among the few that pages speak of.
* ``json``, ``yaml`` and ``toml`` are parsed. ``text`` is none of these: a formula, a layout.

What a page may say in comments that no reader sees:

* ``<!-- file: my_study.py -->``: the next block is written to that file, too.
* ``<!-- skip: next "needs a cluster" -->``: the next block cannot run here, and why.
* ``<!-- invisible-code-block: python`` … ``-->``: what a block takes for granted.

Where a page's blocks name ``my_study.py``, or a search's folder (``runs/…``, ``OUT``,
``autoprune-runs/digits``) that none of them has made, there is a tiny study, or its search.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from helpers import ROOT, Here
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, FencedCodeBlockLexer

from autoprune.pruning.plan import FineTune
from autoprune.run import search as real_search
from autoprune.settings import Settings
from autoprune.study import PruningStudy, load_study

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])

CHEAP = ("new", "doctor", "front", "pick", "report", "compare", "search")
"""Commands that are run; the others are parsed alone."""
ELSEWHERE = ("--engine", "--address", "--storage", "--join", "--tracking-uri", "--register")
"""Options of searches that need more than this machine: these are parsed alone."""
KEPT = ("sampler", "strategy", "objectives", "objective", "inherit", "extras")
"""Settings of a search that a small one keeps."""
PROGRAMS = re.compile(r"\.(onnx|pt2)\b")
"""Files of an export that take most of a tiny search's time, and are left out if nobody reads
them."""
SEARCHED = re.compile(r"\b(?:runs/[\w-]+|autoprune-runs/digits|OUT\d?)\b")
"""Folders of searches."""
OTHERS = (".", "mkdir", "optuna-dashboard", "ray", "scp")
"""Programs that are not looked into: a name that is not here is a mistake."""
MODULES = ("build", "pip", "pytest", "venv")
"""What ``python -m`` is said with."""
FILES = re.compile(r"(?:\.ci|autoprune|benchmarks|docs|studies|tests)/[\w./-]+\.\w+")
"""Files of this project, as arguments."""
NAMED = re.compile(r"^<!-- file: ([\w./-]+) -->\n", re.MULTILINE)
SPLITS = {"&&", "||", ";", "|", "&"}


# --- what a page holds ---------------------------------------------------------------------------


def blocks(document: Document) -> Iterator[Region]:
    """Yield the fenced blocks of a page, and invisible ones."""
    named = {match.end(): match[1] for match in NAMED.finditer(document.text)}
    mapping = {"language": "language", "source": "source"}
    found = [
        *FencedCodeBlockLexer(r"[^\n]*", mapping)(document),
        *DirectiveInHTMLCommentLexer(
            "invisible-code-block", ".+", {"arguments": "language", "source": "source"}
        )(document),
    ]
    for region in found:
        region.parsed = region.lexemes["source"]
        language = region.lexemes["language"].strip()
        region.evaluator = partial(_evaluate, language, named.pop(region.start, None))
        yield region
    assert not named, f"{document.path}: a block must follow <!-- file: {', '.join(named.values())}"


def page(path: Path) -> Document:
    """Return a page of which each example can be evaluated, in order."""
    return Document.parse(str(path), blocks, SkipParser())


def sources(document: Document) -> list[str]:
    """Return the text of each block of a page."""
    return [str(e.parsed) for e in document.examples() if isinstance(e.parsed, str)]


def commands(source: str) -> list[str]:
    """Return the lines of a shell block that are commands; of a transcript, those with a prompt."""
    joined = source.replace("\\\n", " ").splitlines()
    prompted = [line.partition("$ ")[2] for line in joined if re.match(r"\w*\$ ", line)]
    return prompted or [line for line in joined if line.strip()]


# --- how blocks are run --------------------------------------------------------------------------


def _evaluate(language: str, name: str | None, example: Example) -> None:
    if name is not None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(example.parsed)
    if language in ("sh", "bash", "console"):
        _run_shell(example)
    elif language.startswith("{"):
        pass  # a directive of the documentation's generator, which builds it
    elif language not in RUNNERS:
        raise AssertionError(
            f"A block's language must be one of {', '.join(RUNNERS)}, sh, bash, console, "
            f"but is {language!r}: {example.path}, line {example.line}."
        )
    else:
        RUNNERS[language](example)


RUNNERS: Mapping[str, Callable[[Example], object]] = {
    "python": PythonEvaluator(),
    "json": lambda example: json.loads(example.parsed),
    "yaml": lambda example: list(yaml.safe_load_all(example.parsed)),
    "toml": lambda example: tomllib.loads(example.parsed),
    "text": lambda example: None,
}


def _run_shell(example: Example) -> None:
    lines = commands(example.parsed)
    checked = subprocess.run(
        ["bash", "-n"], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"{example.path}, line {example.line}: {checked.stderr}"
    for words in split("\n".join(lines)):
        where = f"{example.path}, line {example.line}: {shlex.join(words)}"
        program, *arguments = words
        if re.fullmatch(r"python\d?", Path(program).name):
            program, arguments = _of_python(arguments, where)
        missing = [word for word in words if FILES.fullmatch(word) and not (ROOT / word).exists()]
        assert not missing, f"{where}: {', '.join(missing)} is not there"
        if Path(program).name == "autoprune":
            parse(arguments)
            if runs_here(arguments):
                here: Here = example.namespace["here"]
                run = here(*arguments, cwd=Path.cwd())
                assert run.returncode == 0, f"{where}\n{run.stdout}{run.stderr}"
        elif program == "make":
            assert set(arguments) <= make_targets(), f"{where}: there is no such target"
        elif Path(program).name == "pip":
            ours = " ".join(word for word in arguments if "autoprune" in word)
            asked = re.findall(r"\[([\w,-]+)\]", ours)
            unknown = {e for extra in asked for e in extra.split(",")} - extras()
            assert not unknown, f"{where}: there is no such extra"
        elif program not in (*OTHERS, *MODULES):
            assert (ROOT / program).is_file(), f"{where}: {program} is no program that is known"


def _of_python(arguments: Sequence[str], where: str) -> tuple[str, Sequence[str]]:
    """Return the module, or script, that Python is said to run, and its arguments."""
    if arguments[0] == "-m":
        assert arguments[1] in MODULES, f"{where}: {arguments[1]} is no module that is known"
        return arguments[1], arguments[2:]
    assert Path(arguments[0]).is_file(), f"{where}: no block has written {arguments[0]}"
    return OTHERS[0], arguments[1:]


def split(script: str) -> Iterator[list[str]]:
    """Yield the words of each simple command, without variables that are set before it."""
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in SPLITS:
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def parse(arguments: Sequence[str]) -> None:
    """Parse the arguments of `autoprune` without running anything; raise for what it refuses."""
    import typer

    from autoprune.cli import app

    root: Any = typer.main.get_command(app)
    given = [word for word in arguments if word != "--help"]
    with root.make_context("autoprune", list(given) or ["--version"]) as context:
        if given and not given[0].startswith("-"):
            name, command, _ = root.resolve_command(context, list(given))
            if given == list(arguments):
                command.make_context(name, given[1:], parent=context)


def options(command: str) -> set[str]:
    """Return the options of a command of `autoprune`."""
    import typer

    from autoprune.cli import app

    root: Any = typer.main.get_command(app)
    params = root.commands[command].params
    return {"--help", *(o for p in params for o in (*p.opts, *p.secondary_opts))}


def runs_here(arguments: Sequence[str]) -> bool:
    """Return whether a command is run, beyond being parsed."""
    if not arguments or arguments[0] not in CHEAP or "--open" in arguments:
        return False
    if arguments[0] != "search":
        return True
    own_study = any(word.endswith(".py") for word in arguments)
    return own_study and not any(word in ELSEWHERE for word in arguments)


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


# --- a search that is small ----------------------------------------------------------------------


def small_search(study: Any = "digits", **settings: Any) -> Any:
    """Search as `autoprune.search` does, for two trials of an epoch and in this process."""
    own = {k: settings.pop(k) for k in list(settings) if k in Settings.__dataclass_fields__}
    Settings(**own)
    loaded = load_study(study) if not isinstance(study, PruningStudy) else study
    small = replace(
        loaded,
        train=loaded.train and FineTune(epochs=min(loaded.train.epochs, 4), lr=loaded.train.lr),
        space=replace(loaded.space, epochs=1, sparsify_epochs=1, steps=1),
        final_epochs=0,
    )
    out = Path(settings.pop("out", None) or f"autoprune-runs/{loaded.name}")
    if (out / STAND).exists():
        shutil.rmtree(out)
    kept = {name: own[name] for name in KEPT if name in own}
    return real_search(small, out=out, **settings, **kept, budget=2, workers=0, tracking_uri="none")


STAND = "stand-in"
"""Marks a folder that stands for a search that a page speaks of."""


def furnish(folder: Path, texts: Iterable[str], *, study: Path, searched: Path) -> None:
    """Put into a page's folder what its blocks take to be there."""
    said = "\n".join(texts)
    if "autoprune new my_study.py" not in said:
        shutil.copy(study, folder / "my_study.py")
    for name in sorted(set(SEARCHED.findall(said))):
        shutil.copytree(searched, folder / name)
        (folder / name / STAND).touch()
