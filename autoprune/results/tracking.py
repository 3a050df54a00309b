"""Tracking: a projection of the study for people to look at, never the truth, never in the way.

Records go through a queue to one background thread, which has the only MLflow client there is. If
the server fails, the search goes on, and what was wrong is said at the end.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autoprune.errors import first_line
from autoprune.results.mlflow_runs import MlflowRuns
from autoprune.results.records import FrontModel, TrialRecord

CLOSE_SECONDS = 120.0


class Tracker(Protocol):
    """Where a search is recorded for people to look at."""

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the search's parent run."""
        ...

    def trial(self, record: TrialRecord) -> None:
        """Record an ended trial."""
        ...

    def missing(self, records: Sequence[TrialRecord]) -> None:
        """Record those of the trials ended in earlier sittings that are not on record."""
        ...

    def front(self, models: Sequence[FrontModel], files: Sequence[Path]) -> None:
        """Mark the front, log its models, and attach files to the parent run."""
        ...

    def finish(self, metrics: Mapping[str, float], *, status: str) -> list[str]:
        """Close the parent run; return what could not be recorded, one line each."""
        ...


class NullTracker:
    """Records nothing."""

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None: ...

    def trial(self, record: TrialRecord) -> None: ...

    def missing(self, records: Sequence[TrialRecord]) -> None: ...

    def front(self, models: Sequence[FrontModel], files: Sequence[Path]) -> None: ...

    def finish(self, metrics: Mapping[str, float], *, status: str) -> list[str]:
        return []


class MlflowTracker:
    """Records in MLflow, from a thread of its own.

    Parameters
    ----------
    uri
        Tracking URI.
    artifacts
        Where a new experiment keeps its files; None leaves that to the server.
    search
        The search's id. Runs that carry it already are found again, so that replaying is harmless.
    """

    def __init__(
        self, *, uri: str, experiment: str, search: str, name: str, artifacts: Path | None
    ) -> None:
        self._queue: queue.Queue[Callable[[MlflowRuns], None] | None] = queue.Queue()
        self._problems: list[str] = []
        self._thread = threading.Thread(
            target=self._work,
            args=(uri, experiment, search, name, artifacts),
            name="mlflow",
            daemon=True,
        )
        self._thread.start()

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self._queue.put(lambda mlflow: mlflow.start(params, tags))

    def trial(self, record: TrialRecord) -> None:
        self._queue.put(lambda mlflow: mlflow.trial(record))

    def missing(self, records: Sequence[TrialRecord]) -> None:
        self._queue.put(lambda mlflow: mlflow.missing(records))

    def front(self, models: Sequence[FrontModel], files: Sequence[Path]) -> None:
        self._queue.put(lambda mlflow: mlflow.front(models, files))

    def finish(self, metrics: Mapping[str, float], *, status: str) -> list[str]:
        self._queue.put(lambda mlflow: mlflow.finish(metrics, status))
        self._queue.put(None)
        left = self._queue.qsize() + 1
        while self._thread.is_alive() and left:
            self._thread.join(CLOSE_SECONDS)
            if self._queue.qsize() >= left:
                break  # nothing has got through in all that time
            left = self._queue.qsize()
        if self._thread.is_alive():
            self._problems.append(f"MLflow did not answer within {CLOSE_SECONDS:.0f} s.")
        return self._problems

    def _work(
        self, uri: str, experiment: str, search: str, name: str, artifacts: Path | None
    ) -> None:
        try:
            mlflow = MlflowRuns(uri, experiment, search, name, artifacts)
        except Exception as error:
            self._problems.append(f"MLflow could not be opened: {first_line(error)}")
            return
        while (action := self._queue.get()) is not None:
            try:
                action(mlflow)
            except Exception as error:
                message = f"MLflow: {first_line(error)}"
                if message not in self._problems:
                    self._problems.append(message)
