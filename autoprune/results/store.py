"""The output folder: where everything of a search lies, and that it all belongs to one search."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import file_digest, read_json, read_signed, write_json, write_signed
from autoprune.pruning.groups import Grouping, from_json, to_json
from autoprune.results.changes import what_changed, with_test_of
from autoprune.results.html import PICTURE
from autoprune.searching.candidate import DENSE, SPARSE, Candidate

FORMAT = 1
"""Version of the folder's layout."""
RESTORE = "Restore it, or begin anew with --fresh."

T = TypeVar("T")


class Store:
    """Names every file of an output folder, and reads and writes the small ones.

    ``search.json`` says whose folder it is, ``origin.json`` where its study came from;
    ``candidates/<name>/`` holds each finished candidate,
    its weights only while it may become a parent or an export; ``dense/`` the dense model,
    ``sparse/<digest>/`` parents trained with a sparsifier, ``underway/`` how far trials have come,
    ``front/<name>/`` the exported models, ``spool/`` what MLflow is told, ``front.json`` the
    result.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.identity_file = self.root / "search.json"
        self.sensitivity_file = self.root / "sensitivity.json"
        self.cache = self.root / "cache"
        self.origin_file = self.root / "origin.json"
        self.journal = self.root / "study.journal"
        self.front = self.root / "front"
        self.front_file = self.root / "front.json"
        self.front_picture = self.root / PICTURE
        self.dense = self.root / "dense"
        self.dense_file = self.dense / "dense.json"
        self.groups_file = self.dense / "groups.json"
        self.logs = self.root / "logs"
        self.mlflow_database = self.root / "mlflow.db"
        self.mlflow_artifacts = self.root / "mlartifacts"
        self.spool = self.root / "spool"
        self._candidates = self.root / "candidates"
        self._sparse = self.root / "sparse"
        self._digests: dict[Path, tuple[tuple[int, int, int], str]] = {}
        """Of files of weights, as they were when they were read last."""
        self.underway = self.root / "underway"

    def relative(self, path: Path) -> str:
        """Return a path in this folder as jobs take it: their store may lie elsewhere."""
        return path.relative_to(self.root).as_posix()

    # --- whose folder it is -----------------------------------------------------------------

    def check(self, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Raise unless the folder is free, or holds the search that `identity` describes.

        To begin `fresh`, it may hold any search, and nothing else.
        """
        try:
            there = self.root.exists()
        except OSError as error:
            raise self._unwritable(error) from error
        if there and not self.root.is_dir():
            raise AutopruneError(f"`--out` must be a folder, but {self.root} is a file.")
        if not self.identity_file.exists():
            if there and not all(_is_any(p.name, BEFORE_ALL) for p in self.root.iterdir()):
                raise AutopruneError(
                    f"`--out` must be empty or hold this study's search, but {self.root} holds "
                    f"other files. Use another folder."
                )
            return
        if fresh:
            self._check_ours()
            return
        known = self._known()
        if known.get("format") != FORMAT:
            raise AutopruneError(
                f"`--out` must be of format {FORMAT}, but {self.root} is of format "
                f"{known.get('format')}: another version of autoprune wrote it. Use another "
                f"folder, or --fresh to begin anew."
            )
        tested = self.front_file.exists()  # with the scores
        changed = what_changed(known, identity if tested else with_test_of(known, identity))
        if changed is not None and not known.get("clearing"):
            raise AutopruneError(
                f"`--out` must be empty or hold this study's search, but {self.root} holds "
                f"another: {changed}. Use another folder, or --fresh to begin anew."
            )

    def open(self, identity: Mapping[str, Any], *, fresh: bool = False) -> dict[str, Any]:
        """Return the identity on disk, with the search's id; the caller holds the folder's lock.

        What is there is deleted to begin `fresh`, and where an earlier try to do so did not end.
        """
        self.check(identity, fresh=fresh)
        new = {"format": FORMAT, "id": uuid.uuid4().hex, **identity}
        if self.identity_file.exists() and (fresh or self._known().get("clearing")):
            write_json(self.identity_file, new | {"clearing": True})
            self._clear()
            write_json(self.identity_file, new)
        elif not self.identity_file.exists():
            write_json(self.identity_file, new)
        known = self._known()
        if "data" in known and "data" in identity and known["data"] != identity["data"]:
            known["data"] = identity["data"]  # its test split, mended before it was used
            write_json(self.identity_file, known)
        if not isinstance(known.get("id"), str):
            raise AutopruneError(
                f"{self.identity_file} must have the search's id, but has none: it was altered. "
                f"{RESTORE}"
            )
        return known

    def _unwritable(self, error: OSError) -> AutopruneError:
        return AutopruneError(
            f"`--out` must be a folder that can be written, but {self.root} cannot: "
            f"{error.strerror or error}."
        )

    def _known(self) -> dict[str, Any]:
        known = read_json(self.identity_file)
        if not isinstance(known, dict):
            raise AutopruneError(
                f"{self.identity_file} must say whose search this is, but holds a "
                f"{type(known).__name__}: it was altered. Use another folder."
            )
        return known

    def _check_ours(self) -> None:
        """Raise unless all that lies in the folder is a search's."""
        known = self._known()
        foreign = [path.name for path in self.root.iterdir() if not _is_ours(path.name)]
        if foreign or "id" not in known:
            raise AutopruneError(
                f"`--fresh` deletes a search and nothing else, but {self.root} also holds "
                f"{foreign[0] if foreign else 'a search.json that is none of ours'}. "
                f"Move that, or use another folder."
            )

    def _clear(self) -> None:
        for path in self.root.iterdir():
            if path.name in (self.identity_file.name, ".lock") or not _is_ours(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process: two drivers on one folder would break each other.

        It is created if need be.
        """
        import fcntl

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("a+")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise AutopruneError(
                    f"Only one search may write to a folder, but process {owner} is writing to "
                    f"{self.root}. Wait for it, or use another --out."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    # --- candidates -------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """Return the folder of a candidate's files, of the dense model's or of sparsified ones."""
        if name.startswith(SPARSE):
            return self._sparse / name.removeprefix(SPARSE)
        return self.dense if name == DENSE else self._candidates / name

    def weights(self, name: str) -> Path:
        return self.folder(name) / "weights.safetensors"

    def scores(self, name: str) -> Path:
        """Return where the channel scores on a candidate's weights are cached."""
        return self.folder(name) / "scores.safetensors"

    def checkpoint(self, name: str) -> Path:
        """Return where a trial under way keeps how far its training has come."""
        return self.underway / f"{name}.safetensors"

    def drop_checkpoint(self, name: str) -> None:
        self.checkpoint(name).unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Delete those of trials that nobody goes on with, as when a worker died too often."""
        shutil.rmtree(self.underway, ignore_errors=True)

    def save_candidate(self, candidate: Candidate) -> None:
        write_signed(self.folder(candidate.name) / "candidate.json", candidate.to_json())

    def load_candidate(self, name: str) -> Candidate:
        """Return a finished candidate; raise `AutopruneError` if its file was altered."""
        file = self.folder(name) / "candidate.json"
        return self._rebuilt(file, Candidate.from_json, read_signed(file, way_out=RESTORE))

    def _rebuilt(self, file: Path, build: Callable[[dict[str, Any]], T], value: Any) -> T:
        """Return what a file's value stands for; raise `AutopruneError` if it is none."""
        try:
            return build(value)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise AutopruneError(
                f"{file} must be as autoprune wrote it, but reading it gave "
                f"{first_line(error)}: it was altered. {RESTORE}"
            ) from error

    def is_intact(self, candidate: Candidate) -> bool:
        """Return whether a candidate's weights are there, and are what was written."""
        file = self.weights(candidate.name)
        if not file.exists():
            return False
        if candidate.sha256 is None:
            return True
        stat = file.stat()
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if self._digests.get(file, (None, ""))[0] != seen:
            self._digests[file] = seen, file_digest(file)
        return self._digests[file][1] == candidate.sha256

    def has_candidate(self, name: str) -> bool:
        """Return whether a candidate was finished; its weights may have been dropped since."""
        return (self.folder(name) / "candidate.json").exists()

    def candidate_names(self) -> list[str]:
        """Return the names of all finished candidates, final stages included."""
        return sorted(file.parent.name for file in self._candidates.glob("*/candidate.json"))

    def has_weights(self, name: str) -> bool:
        return self.weights(name).exists()

    def drop_weights(self, name: str) -> None:
        """Delete a candidate's tensors; what is known of it stays."""
        self.scores(name).unlink(missing_ok=True)
        self.weights(name).unlink(missing_ok=True)  # last: while they are there, it is not done

    # --- the dense model --------------------------------------------------------------------

    @property
    def dense_prepared(self) -> float:
        """When the dense model was scored, in seconds since the epoch."""
        return self.dense_file.stat().st_mtime

    def save_grouping(self, grouping: Grouping) -> None:
        write_json(self.groups_file, to_json(grouping))

    def load_grouping(self) -> Grouping:
        return self._rebuilt(self.groups_file, from_json, read_json(self.groups_file))


OWN = (
    "search.json",
    "origin.json",
    "sensitivity.*",
    "cache",
    "study.journal*",
    "front",
    "front.new",
    "front.json",
    PICTURE,
    "front.html",
    "proxy.png",
    "proxy.html",
    "report.html",
    "dense",
    "candidates",
    "sparse",
    "underway",
    "logs",
    "mlflow.db*",
    "mlartifacts",
    "spool",
    ".lock",
    ".search.json.*",
    ".origin.json.*",
    ".sensitivity.*",
    ".front.*",
    ".proxy.*",
    ".report.*",
)
"""What a search writes into its folder, as patterns; the hidden files are half written ones."""
BEFORE_ALL = (".lock", ".search.json.*", "cache")
"""What may be there of a search that was killed before it had said whose folder it is."""


def _is_ours(name: str) -> bool:
    return _is_any(name, OWN)


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
