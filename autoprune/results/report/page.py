"""The page: one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.pruning.files import write_whole
from autoprune.results.report.facts import Facts, read_facts
from autoprune.results.report.words import difference, point_words
from autoprune.results.result import Model, SearchResult

FILE = "report.html"
"""Its name in the output folder."""
STYLES = ("page.css", "parts.css")
SCRIPTS = ("base.js", "charts.js", "front.js", "model.js", "trials.js", "search.js", "start.js")


def write_report(out: str | Path, to: str | Path | None = None) -> Path:
    """Write the report of a search; return where.

    Parameters
    ----------
    out
        The search's output folder.
    to
        The file to write; by default ``report.html`` in `out`.

    Raises
    ------
    AutopruneError
        If `out` holds no search that can be read, or the file cannot be written.
    """
    target = Path(out) / FILE if to is None else Path(to)
    if target.is_dir():
        raise AutopruneError(
            f"`--to` must be a file, but {target} is a folder. Give {target / FILE} instead."
        )
    page = render(read_facts(Path(out).resolve(), shown_as=_shown(Path(out))))
    try:
        write_whole(target, page.encode())
    except OSError as error:
        raise AutopruneError(
            f"The report must be written to a file in a folder that can be written, but {target} "
            f"cannot: {error.strerror}. Give another one by --to."
        ) from error
    return target.resolve()


def render(facts: Facts) -> str:
    """Return the page as HTML."""
    parts = {
        "title": escape(f"{facts.study}: autoprune report"),
        "study": escape(facts.study),
        "lede": escape(_lede(facts)),
        "style": "\n".join(map(_asset, STYLES)),
        "theme": _asset("theme.js"),
        "choice": _choice(facts),
        "data": _embedded(facts.page),
        "script": "(() => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "\n})();",
    }
    parts["policy"] = _policy(styles=[parts["style"]], scripts=[parts["theme"], parts["script"]])
    # In one pass: what is put in may hold anything, marks too.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (files("autoprune.results.report") / "assets" / name).read_text()


def _policy(*, styles: Iterable[str], scripts: Iterable[str]) -> str:
    """Return a content security policy under which nothing runs or loads but the page's own."""

    def digests(texts: Iterable[str]) -> str:
        hashed = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashed)

    return (
        f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {digests(styles)}; script-src {digests(scripts)}"
    )


def _embedded(value: Any) -> str:
    """Return JSON that may stand inside a script element, whatever names are in it.

    >>> _embedded({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def _lede(facts: Facts) -> str:
    """Say in a few words what was searched and what came of it."""
    states = facts.page["states"]
    words = {"complete": "completed", "stopped": "stopped early", "failed": "failed"}
    counts = [f"{n:,} {words.get(state, state)}" for state, n in states.items()]
    trials = f"{_counted(sum(states.values()), 'trial')} ({', '.join(counts)})" if counts else ""
    spent = f"{trials} and {_counted(facts.page['epochs'], 'epoch')} of training." if trials else ""
    result = facts.result
    if result is None:
        return spent
    scores = _scores(result, result.dense)
    lower = "" if result.higher_is_better else ", where lower is better"
    dense = f"The dense model has {result.dense.params:,} parameters and {scores}{lower}."
    sizes = f"from {result.front[0].params:,} to {result.front[-1].params:,} parameters"
    if len(result.front) == 1:
        sizes = f"with {result.front[0].params:,} parameters"
    found = f"{_counted(len(result.front), 'smaller model')} came out, {sizes}."
    return f"{dense} {found} {spent}"


def _choice(facts: Facts) -> str:
    """Return the cards of the models worth a look, or why there are none."""
    if facts.result is None or facts.chosen is None:
        return (
            '<section class="notice" role="note"><h2>This search has no front</h2>'
            f"<p>{escape(facts.why_none)}</p></section>"
        )
    models = {model.name: model for model in facts.result.front}
    cards = [_card(facts.result, models[card["name"]], card) for card in facts.page["cards"]]
    none = ""
    if facts.chosen.smallest is None:
        lost = escape(point_words(facts.result))
        none = f'<p class="note">No model on the front is within {lost} of the dense model.</p>'
    word = {1: "One model", 2: "Two models"}.get(len(cards), "Three models")
    return (
        f'<section id="choice" aria-labelledby="choice-title">'
        f'<h2 id="choice-title">{word} worth a look</h2>{none}'
        f'<div class="cards">{"".join(cards)}</div>'
        '<p class="note">All were chosen on validation; test was scored once, at the end. '
        "At the knee, the front lies furthest above the straight line from its smallest to its "
        f"best model, over the logarithm of the parameters. {escape(_noise(facts))}</p></section>"
    )


def _noise(facts: Facts) -> str:
    """Say what difference of scores is chance, if that is known."""
    yardstick = facts.page["yardstick"]
    error = yardstick.get("standard_error")
    if not error or facts.result is None:
        return ""
    apart = difference(facts.result, math.sqrt(2) * error)
    return (
        f"Validation has {yardstick['samples']:,} samples: models closer than {apart} (one "
        f"standard error of a difference) cannot be told apart."
    )


def _card(result: SearchResult, model: Model, card: dict[str, Any]) -> str:
    share = model.params / result.dense.params
    titles = " · ".join(escape(title) for title in card["titles"])
    rows = [("of the dense model", f"{share:.1%}"), ("validation", f"{model.valid:.4g}")]
    if model.test is not None:
        rows.append(("test", f"{model.test:.4g}"))
    if model.latency_ms is not None:
        rows.append(("latency", f"{model.latency_ms:.3g} ms"))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    name = escape(model.name)
    load = escape(f'autoprune.load("{result.out.name}/{model.path}", model=Net())')
    return (
        f'<article class="card"><h3>{titles}</h3>'
        f'<p class="figure">{model.params:,} <span>parameters</span></p>'
        f"<p>{escape(card['why'])}</p><dl>{listed}</dl><code>{load}</code>"
        f'<button type="button" data-pick="{name}">How {name} was made</button></article>'
    )


def _scores(result: SearchResult, model: Model) -> str:
    test = "" if model.test is None else f" ({model.test:.4g} on test)"
    return f"{result.metric} {model.valid:.4g} on validation{test}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shown(path: Path) -> Path:
    """Return a folder as commands are to name it: as it was given, if that is short."""
    return path if not path.is_absolute() else path.resolve()
