"""A search as a terminal shows it: progress, trials under way, the front so far."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoprune.plot import Plot
from autoprune.progress import EndedTrial, FrontPoint, RunningTrial, Status
from autoprune.results.choosing import worth_a_look
from autoprune.wording import duration, milliseconds

STAGES = {
    "dense": "Dense model",
    "sensitivity": "Sensitivity of the groups",
    "search": "Search",
    "final": "Final fine-tuning of the front",
    "export": "Export and verification",
    "baselines": "Uniformly pruned baselines",
    "recording": "Recording in MLflow",
}
FRONT_ROWS = 10
"""Most rows of the front's table, and the height of its plot."""
PLOT_WIDTHS = (16, 48)
"""Columns that the plot must have, and that it has at most."""
PLOT_MARGIN = 14
"""Columns that its axis takes, and the gap before it."""


def count(status: Status) -> str:
    text = f"{status.done}/{status.total}"
    return f"{text} {status.unit}" if status.unit else text


def sentence(status: Status, ended: EndedTrial) -> str:
    if ended.state == "failed":
        return f"{ended.name} failed: {ended.cause}"
    share = f"{ended.params / max(status.dense_params, 1):.1%}"
    text = (
        f"{ended.name} {ended.state}: {ended.params:,} params ({share}), "
        f"{status.metric} {ended.valid:.4f}, "
        f"{f'{milliseconds(ended.latency)}, ' if ended.latency is not None else ''}"
        f"{ended.criterion}, from {ended.parent}"
    )
    return f"{text}, {duration(status.eta_seconds)} left" if status.eta_seconds else text


def picture(status: Status) -> Group:
    """Return how a search stands, as a terminal shows it."""
    parts: list[RenderableType] = [Text(STAGES[status.stage], style="bold")]
    if status.total:
        progress = Table.grid(padding=(0, 1))
        progress.add_row(
            ProgressBar(total=status.total, completed=status.done, width=36),
            count(status),
            f"{duration(status.eta_seconds)} left" if status.eta_seconds is not None else "",
        )
        parts.append(progress)
    if status.dense_valid is not None and status.dense_params:
        parts.append(
            Text(f"dense  {status.dense_params:,} params  {status.metric} {status.dense_valid:.4f}")
        )
        if status.front:
            parts.append(Text(best_so_far(status, dense_valid=status.dense_valid)))
    if status.running:
        parts.append(_running_table(status.running))
    if status.front:
        parts.append(_Front(status))
    return Group(*parts)


def best_so_far(status: Status, *, dense_valid: float) -> str:
    """Say which model one would take now: the smallest one within a point of the dense model."""
    dense = FrontPoint("dense", status.dense_params, dense_valid)
    found = worth_a_look(status.front, dense=dense, higher_is_better=status.higher_is_better)
    if found.smallest is None:
        model, what = found.best, "best so far, none within a point"
    else:
        model, what = found.smallest, "smallest within a point"
    share = f"{model.params / max(status.dense_params, 1):.1%}"
    return f"{what}: {model.name}, {share} of the params, {status.metric} {model.valid:.4f}"


class _Front:
    """The front as a table and, where the terminal is wide enough, a plot beside it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _front_table(self._status)
        left = options.max_width - console.measure(table, options=options).maximum - PLOT_MARGIN
        if left < PLOT_WIDTHS[0]:
            yield table
            return
        status = self._status
        known = status.dense_valid is not None
        plot = Plot(
            points=[(point.params, point.valid) for point in status.front],
            reference=(status.dense_params, status.dense_valid or 0.0) if known else None,
            width=min(left, PLOT_WIDTHS[1]),
            height=FRONT_ROWS,
            plain=not console.encoding.lower().startswith("utf"),
        )
        both = Table.grid(padding=(0, 3))
        both.add_row(table, Text("\n".join(plot.lines()), no_wrap=True))
        yield both


def _running_table(running: Sequence[RunningTrial]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("trial", "params", "epoch", "valid", ""):
        table.add_column(heading, justify="left" if heading in ("trial", "") else "right")
    for trial in running:
        valid = "" if trial.valid is None else f"{trial.valid:.4f}"
        epoch = f"{trial.epoch}/{trial.epochs}"
        table.add_row(trial.name, f"{trial.params:,}", epoch, valid, trial.doing)
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
        table.add_row(*row, *([milliseconds(point.latency)] if measured else []))
    return table
