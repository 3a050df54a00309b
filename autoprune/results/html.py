"""A search's result as a notebook shows it: no scripts, nothing to load. No torch here."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from autoprune.results.choosing import worth_a_look

if TYPE_CHECKING:
    from autoprune.results.result import Model, SearchResult

PICTURE = "front.png"
"""The front's picture, in a search's folder."""
HEADER = ("model", "params", "of dense", "MACs", "valid", "test", "")


def as_html(result: SearchResult) -> str:
    """Return a table of the dense model and the front, and the front's picture if it is there."""
    notes: dict[str, list[str]] = {}
    if result.front:
        worth = worth_a_look(
            result.front, dense=result.dense, higher_is_better=result.higher_is_better
        )
        for what, model in worth.by_name.items():
            if model is not None:
                notes.setdefault(model.name, []).append(what)
    rows = [_row(result, model, notes.get(model.name, [])) for model in _models(result)]
    head = "".join(f"<th>{title}</th>" for title in HEADER)
    about = f"{result.study}: {result.metric}, {sum(result.trials.values())} trials"
    return (
        f"<div><p>{escape(about)}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{_picture(result)}</div>"
    )


def _models(result: SearchResult) -> tuple[Model, ...]:
    return (result.dense, *result.front)


def _row(result: SearchResult, model: Model, notes: list[str]) -> str:
    cells = (
        model.name,
        f"{model.params:,}",
        f"{model.params / max(result.dense.params, 1):.1%}",
        f"{model.macs:,}",
        f"{model.valid:.4f}",
        "-" if model.test is None else f"{model.test:.4f}",
        ", ".join(notes),
    )
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _picture(result: SearchResult) -> str:
    file = result.out / PICTURE
    if not file.is_file():
        return ""
    content = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="The front" src="data:image/png;base64,{content}">'
