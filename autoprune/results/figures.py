"""Pictures of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoprune.results.sensitivities import loss_table
from autoprune.searching.pareto import pareto
from autoprune.searching.proxies import EPOCH0

if TYPE_CHECKING:
    from autoprune.results.importances import Importances

BLUE, GREY, ORANGE = "#3b6fb6", "#c8ccd2", "#d9822b"
MOST_BARS = 20
"""Most parameters that are drawn of a search."""
SIZES = "Viridis"
"""The scale of colours that stands for sizes."""


class ProxyPoint(NamedTuple):
    """A trial, as it is drawn to judge a proxy."""

    name: str
    params: int
    before: float
    """What the proxy said: the score before any training."""
    after: float


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
    """Draw the front of a ``front.json`` as a PNG: over the parameters, and over the latency."""
    from matplotlib.figure import Figure

    models, dense = front["front"], front["dense"]
    sides = [("params", "parameters")]
    if all(m.get("latency_ms") is not None for m in (dense, *models)):
        batch = dense["latencies"][0]["batch_size"]
        sides.append(("latency_ms", f"milliseconds for a batch of {batch}"))
    figure = Figure(figsize=(7 * len(sides), 4.5), layout="constrained")
    for number, (cost, label) in enumerate(sides):
        axes = figure.add_subplot(1, len(sides), number + 1)
        _draw_front(axes, front, cost)
        axes.set_xlabel(label)
        if number == 0:
            axes.set_ylabel(front["metric"])
            axes.set_title(f"{front['study']}: {len(models)} models on the front")
            axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _draw_front(axes: Any, front: Mapping[str, Any], cost: str) -> None:
    models, dense = front["front"], front["dense"]
    # A line joins those that nothing beats in this cost alone.
    stairs = pareto(models, score=lambda m: _worth(front, m), costs=lambda m: [m[cost]])
    axes.plot([m[cost] for m in stairs], [m["valid"] for m in stairs], color=BLUE)
    axes.plot(
        [m[cost] for m in models],
        [m["valid"] for m in models],
        "o",
        color=BLUE,
        label="front, validation",
    )
    tested = [m for m in models if m["test"] is not None]
    axes.plot(
        [m[cost] for m in tested],
        [m["test"] for m in tested],
        "x",
        color=ORANGE,
        label="front, test",
    )
    uniform = [m for m in front.get("baselines", []) if cost in m]
    if uniform:
        axes.plot(
            [m[cost] for m in uniform],
            [m["valid"] for m in uniform],
            "D",
            color=GREY,
            markeredgecolor="black",
            label="uniformly pruned",
        )
    axes.axhline(dense["valid"], color="black", linestyle=":", linewidth=1)
    axes.plot(dense[cost], dense["valid"], "s", color="black", label="dense")
    axes.set_xscale("log")


def _worth(front: Mapping[str, Any], model: Mapping[str, Any]) -> float:
    return float(model["valid"]) * (1 if front["higher_is_better"] else -1)


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
        text=[_label(m, front) for m in models],
        mode="lines+markers" if len(front["objectives"]) == 2 else "markers",
        name="front",
        line={"color": BLUE},
    )
    uniform = front.get("baselines", [])
    if uniform:
        figure.add_scatter(
            x=[m["params"] for m in uniform],
            y=[m["valid"] for m in uniform],
            text=[f"{m['name']}, {m['epochs']} epochs" for m in uniform],
            mode="markers",
            name="uniformly pruned",
            marker={"color": GREY, "symbol": "diamond", "line": {"width": 1, "color": "black"}},
        )
    dense = front["dense"]
    figure.add_scatter(
        x=[dense["params"]],
        y=[dense["valid"]],
        text=[_label(dense, front)],
        mode="markers",
        name="dense",
        marker={"color": "black", "symbol": "square"},
    )
    figure.update_xaxes(type="log", title="parameters")
    figure.update_yaxes(title=front["metric"])
    figure.update_layout(title=front["study"], template="simple_white")
    return figure


def _label(model: Mapping[str, Any], front: Mapping[str, Any]) -> str:
    """Return a model's name and its latencies: the search's, and those of `autoprune bench`."""
    latency = model.get("latency_ms")
    parts = [model["name"], *([] if latency is None else [f"{latency:.3g} ms"])]
    for run in front.get("bench", []):
        timed = run["models"].get(model["name"])
        if timed is not None:
            kind = f"{run['runtime']}, batch {run['batch_size']}, threads {run['threads']}"
            parts.append(f"{1e3 * timed['seconds']:.3g} ms ({kind})")
    return ", ".join(parts)


def proxy_picture(front: Mapping[str, Any], points: Sequence[ProxyPoint], path: Path) -> None:
    """Draw the final score over the one before training as a PNG, coloured by size."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if points:
        sizes = [p.params for p in points]
        dots = axes.scatter(
            [p.before for p in points],
            [p.after for p in points],
            c=sizes,
            cmap=SIZES.lower(),
            norm=LogNorm(min(sizes), max(sizes) + 1),
        )
        figure.colorbar(dots, label="parameters")
    axes.set_xlabel(f"{front['metric']} after the cut, before training")
    axes.set_ylabel(f"{front['metric']} at the end of the trial")
    axes.set_title(_proxy_title(front), fontsize=10)
    figure.savefig(path, dpi=110)


def proxy_figure(front: Mapping[str, Any], points: Sequence[ProxyPoint]) -> Any:
    """Return the same as an interactive plotly figure."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[p.before for p in points],
        y=[p.after for p in points],
        text=[f"{p.name}, {p.params:,} parameters" for p in points],
        mode="markers",
        marker={
            "color": [math.log10(p.params) for p in points],
            "colorscale": SIZES,
            "colorbar": {"title": "log10 parameters"},
        },
    )
    figure.update_xaxes(title=f"{front['metric']} after the cut, before training")
    figure.update_yaxes(title=f"{front['metric']} at the end of the trial")
    figure.update_layout(title=_proxy_title(front), template="simple_white")
    return figure


def _proxy_title(front: Mapping[str, Any]) -> str:
    found = front["proxies"].get(EPOCH0, {}).get("within_sizes")
    said = "too few trials of one size" if found is None else f"{found:.2f}"
    return f"{front['study']}: rank correlation within sizes {said}"


def importances_picture(found: Importances, title: str, path: Path) -> None:
    """Draw what mattered for the score within sizes, and for the size, parameter by parameter."""
    from matplotlib.figure import Figure

    sides = [("score, within sizes", found.score), ("size", found.size)]
    shown = [(name, side) for name, side in sides if side]
    most = max((len(side) for _, side in shown), default=1)
    figure = Figure(figsize=(11, 1.5 + 0.28 * min(most, MOST_BARS)), layout="constrained")
    for number, (name, side) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        largest = sorted(side.items(), key=lambda item: -item[1])[:MOST_BARS]
        places = range(len(largest))
        axes.barh(places, [share for _, share in largest], color=BLUE)
        axes.set_yticks(places, [parameter for parameter, _ in largest], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("importance (PED-ANOVA)")
        axes.set_title(f"for the {name}", fontsize=9)
    figure.suptitle(f"{title}: what mattered, of {found.trials} trials", fontsize=10)
    figure.savefig(path, dpi=90)


def sensitivity_picture(found: Mapping[str, Any], path: Path) -> None:
    """Draw what a ``sensitivity.json`` says as a heat map, in PNG: what cutting a group costs."""
    from matplotlib.figure import Figure

    table = loss_table(found)
    rows, columns = table.groups, table.columns
    size = (2.5 + 0.9 * len(columns) + 0.06 * max(map(len, rows)), 1.6 + 0.26 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    values = [[math.nan if v is None else v for v in row] for row in table.lost]
    image = axes.imshow(values, cmap="OrRd", aspect="auto", vmin=0.0, vmax=table.most)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for y, row in enumerate(table.lost):
        for x, value in enumerate(row):
            if value is not None:
                dark = value > 0.6 * table.most
                colour = "white" if dark else "black"
                axes.text(x, y, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xlabel("share of the group's channels that is left, all else dense")
    axes.set_title(f"{found['study']}: {table.what}", fontsize=10)
    figure.colorbar(image)
    figure.savefig(path, dpi=110)


def sensitivity_figure(found: Mapping[str, Any]) -> Any:
    """Return the same as an interactive plotly figure."""
    import plotly.graph_objects as go

    table = loss_table(found)
    figure = go.Figure(
        go.Heatmap(
            z=table.lost,
            x=list(table.columns),
            y=list(table.groups),
            zmin=0.0,
            zmax=table.most,
            colorscale="OrRd",
            texttemplate="%{z:.3f}",
            hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(title="share of the group's channels that is left, all else dense")
    figure.update_layout(
        title=f"{found['study']}: {table.what}",
        template="simple_white",
        height=180 + 22 * len(table.groups),
    )
    return figure
