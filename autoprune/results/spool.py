"""The spool: what MLflow is to be told, on disk before anybody tries to tell it.

Each record is a file of its own, ``<number>-<kind>.json``, and stays: a server that comes later
gets them all. What a server has got is marked in ``delivered-<server>.txt``. A mark that is lost
is harmless, as telling MLflow twice is.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.pruning.files import read_json, write_json, write_whole
from autoprune.redaction import redacted
from autoprune.results.records import (
    FrontRecord,
    Record,
    TrialRecord,
    from_json,
    kind_of,
    to_json,
)

LOCAL = "local"
"""The address of the database in the search's own folder, wherever that is moved to."""
DIGITS = 6
HELD = ".held"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where records go."""

    uri: str
    """`LOCAL`, or a tracking URI without its secrets."""
    experiment: str
    whole: bool
    """Whether the URI leads there as it is, having had no secrets."""

    @classmethod
    def of(cls, uri: str | None, experiment: str) -> Destination:
        shown = LOCAL if uri is None else redacted(uri)
        return cls(uri=shown, experiment=experiment, whole=uri is None or shown == uri)

    @property
    def digest(self) -> str:
        text = f"{self.uri}\n{self.experiment}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Spool:
    """The records of one search and what of them a destination has not got yet.

    One process at a time may use it, with one thread that writes and one that delivers.
    """

    def __init__(self, folder: Path, destination: Destination) -> None:
        self._folder = folder
        self._marks = folder / f"delivered-{destination.digest}.txt"
        self._lock = threading.Lock()
        self._kinds = dict(_numbered(path) for path in folder.glob(f"{'[0-9]' * DIGITS}-*.json"))
        held = [_numbered(path)[0] for path in folder.glob(f"*{HELD}")]
        self._next = max([*self._kinds, *held], default=-1) + 1
        self._pending = set(self._kinds) - self._delivered()

    def pending(self) -> list[int]:
        """Return the numbers of what is still to be delivered, oldest first."""
        with self._lock:
            return sorted(self._pending)

    def __len__(self) -> int:
        return len(self._kinds)

    def read(self, number: int) -> Record | None:
        """Read a record; None if it was superseded.

        Raises
        ------
        AutopruneError
            If its file is not as it was written.
        """
        with self._lock:
            kind = self._kinds.get(number)
            return None if kind is None else self._read(self._path(number), kind)

    def latest(self, kind: str) -> Record | None:
        """Return the latest record of a kind."""
        with self._lock:
            number = max((n for n, k in self._kinds.items() if k == kind), default=None)
        return None if number is None else self.read(number)

    def is_over(self, number: int) -> bool:
        """Return whether a sitting of the search has ended since that record."""
        with self._lock:
            return any(n > number and kind == "finish" for n, kind in self._kinds.items())

    # --- the writer's side ------------------------------------------------------------------

    def write(self, record: Record) -> None:
        """Keep a record. A front takes the place of the earlier ones."""
        number = self._number()
        kind = kind_of(record)
        self._store(self._folder / f"{number:0{DIGITS}d}-{kind}.json", record)
        self._add(number, kind)
        if isinstance(record, FrontRecord):
            self._forget_fronts(before=number)

    def hold(self, record: TrialRecord) -> int:
        """Keep a record that is not to be delivered before `release`; return its number."""
        number = self._number()
        self._store(self._held_path(number), record)
        return number

    def release(self, number: int) -> None:
        os.replace(self._held_path(number), self._folder / f"{number:0{DIGITS}d}-trial.json")
        self._add(number, "trial")

    def settle(self, ended: Collection[tuple[str, str]]) -> None:
        """Release what an earlier process held of trials that ended so, and drop the rest.

        `ended` has each ended trial's key and state.
        """
        for path in sorted(self._folder.glob(f"*{HELD}")):
            record = self._read(path, "trial")
            assert isinstance(record, TrialRecord)
            if (record.key, record.state) in ended:
                self.release(_numbered(path)[0])
            else:
                path.unlink()

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _store(self, path: Path, record: Record) -> None:
        write_whole(path, json.dumps(to_json(record), default=_plain).encode())
        _flush(self._folder)

    def _add(self, number: int, kind: str) -> None:
        with self._lock:
            self._kinds[number] = kind
            self._pending.add(number)

    def _forget_fronts(self, *, before: int) -> None:
        with self._lock:
            old = [n for n, kind in self._kinds.items() if kind == "front" and n < before]
            for number in old:
                self._path(number).unlink(missing_ok=True)
                del self._kinds[number]
                self._pending.discard(number)

    # --- the deliverer's side ---------------------------------------------------------------

    def mark(self, number: int) -> None:
        """Note that a record was delivered."""
        with self._marks.open("a") as file:
            file.write(f"{number:0{DIGITS}d}\n")
        with self._lock:
            self._pending.discard(number)

    def _delivered(self) -> set[int]:
        try:
            content = self._marks.read_text()
        except FileNotFoundError:
            return set()
        if not content.endswith("\n"):  # cut short: the next mark must not be glued to it
            with self._marks.open("a") as file:
                file.write("\n")
            content = content[: content.rfind("\n") + 1]
        return {
            int(line) for line in content.splitlines() if len(line) == DIGITS and line.isdigit()
        }

    # --- files ------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:0{DIGITS}d}-{self._kinds[number]}.json"

    def _held_path(self, number: int) -> Path:
        return self._folder / f"{number:0{DIGITS}d}-trial{HELD}"

    def _read(self, path: Path, kind: str) -> Record:
        value = read_json(path)
        try:
            return from_json(kind, value)
        except (KeyError, TypeError, ValueError) as error:
            raise AutopruneError(
                f"{path} must be a record as autoprune wrote it, but is not: "
                f"{type(error).__name__}. Was it altered?"
            ) from error


def save_destination(folder: Path, destination: Destination) -> None:
    write_json(folder / "destination.json", asdict(destination))


def load_destination(folder: Path) -> Destination:
    """Return where the records of the latest sitting went.

    Raises
    ------
    AutopruneError
        If the file is missing or altered.
    """
    file = folder / "destination.json"
    try:
        return Destination(**read_json(file))
    except TypeError as error:
        raise AutopruneError(
            f"{file} must be as autoprune wrote it, but is not. Was it altered? "
            f"Give --tracking-uri."
        ) from error


def _numbered(path: Path) -> tuple[int, str]:
    number, _, kind = path.name.partition("-")
    return int(number), kind.split(".")[0]


def _plain(value: Any) -> Any:
    """Return a number of another library, or whatever else it is, as JSON can have it."""
    return value.item() if hasattr(value, "item") else str(value)


def _flush(folder: Path) -> None:
    """Make sure that a new file's name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
