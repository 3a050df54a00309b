"""How a search looks in a terminal: a live picture, or plain lines where there is none."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoprune.progress import EndedTrial, RunningTrial, Status
from autoprune.redaction import redacted

if TYPE_CHECKING:
    from autoprune.results.diagnosis import Diagnosis
    from autoprune.results.result import Model, SearchResult

STAGES = {
    "dense": "Dense model",
    "sensitivity": "Sensitivity of the groups",
    "search": "Search",
    "final": "Final fine-tuning of the front",
    "export": "Export and verification",
    "baselines": "Uniformly pruned baselines",
    "recording": "Recording in MLflow",
}
FRONT_ROWS = 12
LONG_TABLE = 100
"""Rows beyond which a table is printed plainly: rich takes a millisecond for each."""


class TerminalReporter:
    """Base of what the command prints with: a context that knows the console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, status: Status) -> None: ...

    def note(self, message: str) -> None:
        self.console.print(
            f"note: {redacted(message)}", markup=False, highlight=False, soft_wrap=True
        )


class PlainReporter(TerminalReporter):
    """One line a stage and a line an ended trial: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._stage = ""

    def update(self, status: Status) -> None:
        if status.stage != self._stage:
            self._stage = status.stage
            self._line(STAGES[status.stage])
        if status.ended is not None:
            self._line(f"[{_count(status)}] {_sentence(status, status.ended)}")
        elif status.stage == "dense" and status.done and status.done == status.total:
            self._line(f"  {status.metric} {status.dense_valid:.4f} after {status.done} epochs")

    def _line(self, text: str) -> None:
        self.console.print(redacted(text), markup=False, highlight=False, soft_wrap=True)


class LiveReporter(TerminalReporter):
    """A picture that is redrawn in place: progress, trials under way, the front so far."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, status: Status) -> None:
        if status.ended is not None and status.ended.state == "failed":
            self.note(_sentence(status, status.ended))
        self._live.update(_picture(status))


def reporter_for(*, quiet: bool) -> TerminalReporter:
    """Return the reporter that suits where standard error goes."""
    console = Console(stderr=True)
    if quiet:
        return TerminalReporter(console)
    if console.is_terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("CI"):
        return LiveReporter(console)
    return PlainReporter(console)


@contextmanager
def delivery_progress() -> Iterator[Callable[[int, int], None]]:
    """Show a delivery's progress on a terminal; yield what is told of it: (done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn("Recording in MLflow"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
        f"{name} {found['within_sizes']:.2f} ({found['binned']} trials in {found['bins']} sizes)"
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
    return _milliseconds(model.latency_ms / 1e3), share


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


def _count(status: Status) -> str:
    text = f"{status.done}/{status.total}"
    return f"{text} {status.unit}" if status.unit else text


def _sentence(status: Status, ended: EndedTrial) -> str:
    if ended.state == "failed":
        return f"{ended.name} failed: {ended.cause}"
    share = f"{ended.params / max(status.dense_params, 1):.1%}"
    text = (
        f"{ended.name} {ended.state}: {ended.params:,} params ({share}), "
        f"{status.metric} {ended.valid:.4f}, "
        f"{f'{_milliseconds(ended.latency)}, ' if ended.latency is not None else ''}"
        f"{ended.criterion}, from {ended.parent}"
    )
    return f"{text}, {_duration(status.eta_seconds)} left" if status.eta_seconds else text


def _picture(status: Status) -> Group:
    parts: list[Table | Text | ProgressBar] = [Text(STAGES[status.stage], style="bold")]
    if status.total:
        progress = Table.grid(padding=(0, 1))
        progress.add_row(
            ProgressBar(total=status.total, completed=status.done, width=36),
            _count(status),
            f"{_duration(status.eta_seconds)} left" if status.eta_seconds is not None else "",
        )
        parts.append(progress)
    if status.dense_valid is not None and status.dense_params:
        parts.append(
            Text(f"dense  {status.dense_params:,} params  {status.metric} {status.dense_valid:.4f}")
        )
    if status.running:
        parts.append(_running_table(status.running))
    if status.front:
        parts.append(_front_table(status))
    return Group(*parts)


def _running_table(running: Sequence[RunningTrial]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("trial", "params", "epoch", "valid"):
        table.add_column(heading, justify="left" if heading == "trial" else "right")
    for trial in running:
        valid = "" if trial.valid is None else f"{trial.valid:.4f}"
        table.add_row(trial.name, f"{trial.params:,}", f"{trial.epoch}/{trial.epochs}", valid)
    return table


def _front_table(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("front")
    table.add_column("params", justify="right")
    table.add_column("of dense", justify="right")
    table.add_column(status.metric, justify="right")
    step = max(1, -(-len(status.front) // FRONT_ROWS))
    measured = any(point.latency is not None for point in status.front)
    if measured:
        table.add_column("latency", justify="right")
    for point in list(status.front)[::step]:
        share = point.params / max(status.dense_params, 1)
        row = [point.name, f"{point.params:,}", f"{share:.1%}", f"{point.valid:.4f}"]
        table.add_row(*row, *([_milliseconds(point.latency)] if measured else []))
    return table


def _milliseconds(seconds: float | None) -> str:
    """Write a latency with three digits.

    >>> _milliseconds(0.0123456), _milliseconds(0.000123456), _milliseconds(None)
    ('12.3 ms', '0.123 ms', '-')
    """
    if seconds is None:
        return "-"
    digits = max(2 - math.floor(math.log10(max(1e3 * seconds, 1e-3))), 0)
    return f"{1e3 * seconds:.{digits}f} ms"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
