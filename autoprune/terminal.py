"""How a search looks in a terminal: a live picture, or plain lines where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from autoprune.picture import STAGES, count, picture, sentence
from autoprune.progress import Status
from autoprune.redaction import redacted


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
            self._line(f"[{count(status)}] {sentence(status, status.ended)}")
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
            self.note(sentence(status, status.ended))
        self._live.update(picture(status))


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
