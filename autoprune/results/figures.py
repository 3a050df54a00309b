"""Pictures of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLUE, GREY, ORANGE = "#3b6fb6", "#c8ccd2", "#d9822b"


def sparsity_picture(sparsity: Mapping[str, float], title: str, path: Path) -> None:
    """Draw, per channel group, which share of the channels stays."""
    from matplotlib.figure import Figure

    names = list(sparsity)
    stays = [1.0 - s for s in sparsity.values()]
    figure = Figure(figsize=(6, 1 + 0.25 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(names))
    axes.barh(places, [1.0] * len(names), color=GREY)
    axes.barh(places, stays, color=BLUE)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of channels kept")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=90)


def front_picture(front: Mapping[str, Any], path: Path) -> None:
    """Draw the front of a ``front.json`` as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    models = front["front"]
    axes.plot(
        [m["params"] for m in models],
        [m["valid"] for m in models],
        "o-",
        color=BLUE,
        label="front, validation",
    )
    tested = [m for m in models if m["test"] is not None]
    axes.plot(
        [m["params"] for m in tested],
        [m["test"] for m in tested],
        "x",
        color=ORANGE,
        label="front, test",
    )
    axes.axhline(front["dense"]["valid"], color="black", linestyle=":", linewidth=1)
    axes.plot(front["dense"]["params"], front["dense"]["valid"], "s", color="black", label="dense")
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel(front["metric"])
    axes.set_title(f"{front['study']}: {len(models)} models on the front")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def front_figure(front: Mapping[str, Any], trials: Sequence[tuple[int, float, str]]) -> Any:
    """Return an interactive plotly figure of the front over all completed trials.

    `trials` holds (params, score, name).
    """
    import plotly.graph_objects as go

    models = front["front"]
    figure = go.Figure()
    figure.add_scatter(
        x=[t[0] for t in trials],
        y=[t[1] for t in trials],
        text=[t[2] for t in trials],
        mode="markers",
        name="trials",
        marker={"color": GREY},
    )
    figure.add_scatter(
        x=[m["params"] for m in models],
        y=[m["valid"] for m in models],
        text=[m["name"] for m in models],
        mode="lines+markers",
        name="front",
        line={"color": BLUE},
    )
    dense = front["dense"]
    figure.add_scatter(
        x=[dense["params"]],
        y=[dense["valid"]],
        text=["dense"],
        mode="markers",
        name="dense",
        marker={"color": "black", "symbol": "square"},
    )
    figure.update_xaxes(type="log", title="parameters")
    figure.update_yaxes(title=front["metric"])
    figure.update_layout(title=front["study"], template="simple_white")
    return figure
