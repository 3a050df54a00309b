"""Files that go to a machine which does not share the driver's disk, and those that come back.

Each file has its SHA-256 with it, and is written only where it is what was sent.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from autoprune.errors import AutopruneError, is_full, without_room

KEPT_PIECES = 64
"""How many files stay where they were put, for the next job that needs them."""


@dataclass(frozen=True, kw_only=True)
class Freight:
    """Which files a job has to do with, by their paths in the folder that travels.

    A path may be a folder's: that is all files in it. What does not exist does not travel.
    """

    needs: tuple[str, ...] = ()
    """What it reads."""
    leaves: tuple[str, ...] = ()
    """What it writes, and is fetched at its end."""
    keeps: tuple[str, ...] = ()
    """What it writes as it goes: fetched with everything that it tells of its progress."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file on its way."""

    sha256: str
    content: bytes


class TornError(AutopruneError):
    """A file did not arrive as it was sent."""


@dataclass
class Digests:
    """SHA-256 of files, read again only where a file has changed."""

    _known: dict[Path, tuple[tuple[int, int, int], str]] = field(default_factory=dict)

    def of(self, file: Path) -> str:
        stat = file.stat()
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._known.get(file)
        if known is None or known[0] != seen:
            with file.open("rb") as opened:
                known = seen, hashlib.file_digest(opened, "sha256").hexdigest()
            self._known[file] = known
        return known[1]


def files_in(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the files that `paths` stand for; half written ones are left out."""
    for path in paths:
        start = root / path
        found = sorted(start.rglob("*")) if start.is_dir() else [start]
        for file in found:
            if file.is_file() and not file.name.startswith("."):
                yield file.relative_to(root).as_posix(), file


def packed(file: Path) -> Piece:
    """Return a file as it travels."""
    content = file.read_bytes()
    return Piece(sha256=hashlib.sha256(content).hexdigest(), content=content)


def unpack(root: Path, name: str, piece: Piece) -> None:
    """Write a file that has arrived, whole.

    Raises
    ------
    TornError
        If it is not what was sent, or wants to lie outside of `root`.
    RoomError
        If there is no room.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise TornError(f"A file must go into {root}, but {name!r} would not.")
    if hashlib.sha256(piece.content).hexdigest() != piece.sha256:
        raise TornError(f"{name} must arrive as it was sent, but was altered on its way.")
    target = root / path
    temporary = target.with_name(f".{target.name}.arriving")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(piece.content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_full(error):
            raise without_room(error, target) from error
        raise


@dataclass
class Sender:
    """Puts files where others can fetch them, once as long as they stay the same.

    Parameters
    ----------
    put
        Takes a `Piece`, and returns where it is fetched.
    """

    put: Callable[[Piece], Any]
    _digests: Digests = field(default_factory=Digests)
    _pieces: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    """By SHA-256."""

    def piece(self, file: Path) -> tuple[str, Any]:
        """Return a file's SHA-256, and where it is."""
        sha256 = self._digests.of(file)
        if sha256 not in self._pieces:
            self._pieces[sha256] = self.put(packed(file))
        self._pieces.move_to_end(sha256)
        where = self._pieces[sha256]
        while len(self._pieces) > KEPT_PIECES:
            self._pieces.popitem(last=False)
        return sha256, where


def within(name: str, paths: Iterable[str]) -> bool:
    """Return whether a file is one of `paths`, or lies in one.

    >>> within("front.new/t1/plan.json", ["front.new/t1"]), within("front.json", ["front"])
    (True, False)
    """
    return any(PurePosixPath(name).is_relative_to(path) for path in paths)


# --- what travels once: the code that a worker needs --------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Luggage:
    """Files that a worker needs from the driver's machine before its first job.

    Where a machine has the very same files under the same path, as on a shared disk, those are
    used: what lies beside them is found then, too.
    """

    folders: Mapping[str, Mapping[str, Piece]] = field(default_factory=dict)
    """By the driver's path of a folder, files by their paths in it."""

    def laid_out(self, root: Path) -> dict[str, str]:
        """Return where each folder is here, by the driver's path; missing ones go to `root`."""
        return {
            folder: folder if _is_there(Path(folder), files) else _placed(root / str(n), files)
            for n, (folder, files) in enumerate(self.folders.items())
        }


def _is_there(folder: Path, files: Mapping[str, Piece]) -> bool:
    try:
        return all(packed(folder / name).sha256 == piece.sha256 for name, piece in files.items())
    except OSError:
        return False


def _placed(root: Path, files: Mapping[str, Piece]) -> str:
    for name, piece in files.items():
        unpack(root, name, piece)
    return str(root)


def relocated(value: Any, folders: Mapping[str, str]) -> Any:
    """Return JSON with the paths in it that lie in one of `folders` as they are elsewhere.

    >>> relocated({"path": "/home/a/study.py", "seed": 1}, {"/home/a": "/tmp/b"})
    {'path': '/tmp/b/study.py', 'seed': 1}
    """
    if isinstance(value, Mapping):
        return {key: relocated(item, folders) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [relocated(item, folders) for item in value]
    if not isinstance(value, str) or not value.startswith("/") or len(value) > 4096:
        return value
    # The innermost folder: one that travels may lie in another.
    for folder in sorted(folders, key=len, reverse=True):
        if within(value, [folder]):
            return str(PurePosixPath(folders[folder]) / PurePosixPath(value).relative_to(folder))
    return value
