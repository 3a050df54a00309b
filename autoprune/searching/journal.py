"""The Optuna study in a file: a journal that its driver alone writes to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import AutopruneError, first_line, is_full


class JournalFile(BaseJournalBackend):
    """Optuna's journal file, byte for byte, that knows which writes belong together.

    Optuna's own flushes the disk after every parameter, and remembers where every line began.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileSymlinkLock(str(path))  # a dashboard may write notes, too
        self._read = (0, 0)  # lines and bytes of them that have been read
        self._together = False
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        number, offset = self._read if self._read[0] <= log_number_from else (0, 0)
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # somebody is writing it
                number, offset = number + 1, offset + len(line)
                if number > log_number_from:
                    self._read = number, offset
                    yield _with_shared_name(json.loads(line))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                if not self._together:
                    os.fsync(file.fileno())
        finally:
            self._lock.release()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Flush the disk once, at the end, for all that is written in the context."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            with self._path.open("rb") as file:
                os.fsync(file.fileno())


def _with_shared_name(log: dict[str, Any]) -> dict[str, Any]:
    """Return a line of a journal whose parameter, if it is of one, is held in memory once."""
    if "param_name" in log:
        log["param_name"] = sys.intern(log["param_name"])
    return log


class Journal(JournalStorage):
    """Optuna's storage on a `JournalFile`.

    Optuna's own makes a distribution of every parameter of every trial: trials that have ended
    share them here, or a long search would hold little else.
    """

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        self._distributions: dict[str, BaseDistribution] = {}
        super().__init__(self._file)
        for study in self.get_all_studies():
            for trial in self.get_all_trials(study._study_id, deepcopy=False):
                self._share_distributions(trial)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        self._share_distributions(self.get_trial(trial_id))
        return done

    def _share_distributions(self, trial: FrozenTrial) -> None:
        if not trial.state.is_finished():
            return
        if trial.distributions == self._distributions:
            trial.distributions = self._distributions
        else:
            self._distributions = trial.distributions

    def together(self) -> AbstractContextManager[None]:
        return self._file.together()


def open_journal(path: Path) -> BaseStorage:
    """Open a journal file; mend it first if a crash tore its last line or left its lock.

    The caller holds the folder's lock, so that nobody else is writing.

    Raises
    ------
    AutopruneError
        If the file was altered.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    try:
        return Journal(path)
    except Exception as error:  # of any kind: Optuna replays whatever is there
        if is_full(error):
            raise
        raise AutopruneError(
            f"{path} must be as the search wrote it, but replaying it gave {first_line(error)}: "
            f"it was altered. Restore it, or begin anew with --fresh."
        ) from error


def together(storage: BaseStorage) -> AbstractContextManager[None]:
    """Write what the context tells a storage of trials at once, where the storage can do that."""
    batch = getattr(storage, "together", None)
    return nullcontext() if batch is None else batch()
