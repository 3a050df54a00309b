"""Tables on standard output: the front, what can be pruned, and whatever has columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoprune.wording import milliseconds

if TYPE_CHECKING:
    from autoprune.results.diagnosis import Diagnosis
    from autoprune.results.result import Model, SearchResult

LONG_TABLE = 100
"""Rows beyond which a table is printed plainly: rich takes a millisecond for each."""


def print_front(result: SearchResult) -> None:
    """Print the dense model and the front as a table on standard output."""
    headings = ["params", "of dense", "macs", "size", f"{result.metric} valid", "test"]
    dense = result.dense
    models = (dense, *result.front)
    measured = any(model.latency_ms is not None for model in models)
    headings = ["model", *headings, *(["latency", "of dense"] if measured else [])]
    rows = [
        (
            model.name,
            f"{model.params:,}",
            f"{model.params / max(dense.params, 1):.1%}",
            f"{model.macs:,}",
            f"{model.size_bytes / 1024:,.1f} KB",
            f"{model.valid:.4f}",
            "-" if model.test is None else f"{model.test:.4f}",
            *(_latency_cells(model, dense) if measured else ()),
        )
        for model in models
    ]
    print_table(headings, rows)
    said = _proxy_line(result)
    if said:
        _output_console().print(said, highlight=False, soft_wrap=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output: names on the left, numbers on the right."""
    if len(rows) > LONG_TABLE:
        lines = [headings, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
        for name, *cells in lines:
            numbers = [c.rjust(w) for c, w in zip(cells, widths[1:], strict=True)]
            sys.stdout.write("  ".join([name.ljust(widths[0]), *numbers]).rstrip() + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _output_console().print(table)


def _proxy_line(result: SearchResult) -> str:
    """Say how well proxies ranked trials of one size; nothing where no size has enough trials."""
    parts = [
        f"{name} {found['within_sizes']:.2f} "
        f"({found['binned']} trials in {found['bins']} {'size' if found['bins'] == 1 else 'sizes'})"
        for name, found in result.proxies.items()
        if found["within_sizes"] is not None
    ]
    if not parts:
        return ""
    return f"\nRank correlation of proxies with the final score, within sizes: {', '.join(parts)}"


def _latency_cells(model: Model, dense: Model) -> tuple[str, str]:
    if model.latency_ms is None:
        return "-", "-"
    share = f"{model.latency_ms / dense.latency_ms:.0%}" if dense.latency_ms else "-"
    return milliseconds(model.latency_ms / 1e3), share


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what can be pruned and what cannot, as tables on standard output."""
    console = _output_console()
    share = diagnosis.blocked_params / max(diagnosis.params, 1)
    console.print(
        f"{diagnosis.study}: {diagnosis.params:,} parameters, {diagnosis.macs:,} MACs; "
        f"the smallest possible model has {diagnosis.least_params:,} parameters.",
        highlight=False,
    )
    groups = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    groups.add_column("channel group")
    groups.add_column("channels", justify="right")
    groups.add_column("frees at most", justify="right")
    groups.add_column("layers")
    for row in diagnosis.groups:
        freed = f"{row.params:,} ({row.params / diagnosis.params:.0%})"
        groups.add_row(row.name, str(row.channels), freed, ", ".join(row.layers))
    console.print(groups)
    layers = Table(box=None, pad_edge=False, header_style="bold")
    layers.add_column("layer")
    for heading in ("channels", "params", "of all"):
        layers.add_column(heading, justify="right")
    layers.add_column("channel group, or why its own channels stay")
    for layer in diagnosis.layers:
        layers.add_row(
            layer.name,
            str(layer.channels),
            f"{layer.params:,}",
            f"{layer.share:.1%}",
            (", ".join(layer.groups) or f"blocked: {layer.reason}")
            + (f"; may be dropped with {layer.block}" if layer.block else ""),
        )
    console.print()
    console.print(layers)
    if not diagnosis.groups:
        console.print("Nothing can be pruned.", style="bold red")
    elif share > 0.5:
        console.print(f"Warning: {share:.0%} of the parameters are in blocked layers.")


def _output_console() -> Console:
    """Return a console on standard output that never breaks a table's cells in a pipe."""
    if sys.stdout.isatty():
        return Console(markup=False)
    return Console(width=160, markup=False)
