"""Drawing a front anew, when something was found out of its models after the search's end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoprune.pruning.files import read_json
from autoprune.results.figures import front_figure, front_picture
from autoprune.results.store import Store
from autoprune.searching.candidate import FINAL, Candidate


def draw_front(
    store: Store, front_json: Mapping[str, Any], trials: Iterable[Candidate]
) -> list[Path]:
    """Draw the front, as a picture and as an interactive page; return the files."""
    picture, page = store.front_picture, store.root / "front.html"
    front_picture(front_json, picture)
    points = [(c.score.params, c.score.valid, c.name) for c in trials]
    front_figure(front_json, points).write_html(page, include_plotlyjs=True)
    return [picture, page]


def interactive(store: Store) -> Any:
    """Return the plotly figure of a finished search's front over all its trials."""
    points = [(c.score.params, c.score.valid, c.name) for c in _trials(store)]
    return front_figure(read_json(store.front_file), points)


def redraw(store: Store) -> list[Path]:
    """Draw a search's front as ``front.json`` now has it; return the files, that one first."""
    return [store.front_file, *draw_front(store, read_json(store.front_file), _trials(store))]


def _trials(store: Store) -> Iterator[Candidate]:
    names = [name for name in store.candidate_names() if not name.endswith(FINAL)]
    return map(store.load_candidate, names)
