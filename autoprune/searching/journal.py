"""The Optuna study in a file: a journal that its driver alone writes to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

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
                    yield json.loads(line)

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


class Journal(JournalStorage):
    """Optuna's storage on a `JournalFile`."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        super().__init__(self._file)

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
