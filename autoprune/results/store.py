"""The output folder: where everything of a search lies, and that it all belongs to one search."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.pruning.files import read_json, write_json
from autoprune.pruning.groups import Grouping, from_json, to_json
from autoprune.searching.candidate import DENSE, SPARSE, Candidate

FORMAT = 1
"""Version of the folder's layout."""


class Store:
    """Names every file of an output folder, and reads and writes the small ones.

    ``search.json`` says whose folder it is; ``candidates/<name>/`` holds each finished candidate,
    its weights only while it may become a parent or an export; ``dense/`` the dense model,
    ``sparse/<digest>/`` parents trained with a sparsifier, ``front/<name>/`` the exported models,
    ``spool/`` what MLflow is told, ``front.json`` the result.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.identity_file = self.root / "search.json"
        self.journal = self.root / "study.journal"
        self.front = self.root / "front"
        self.front_file = self.root / "front.json"
        self.dense = self.root / "dense"
        self.dense_file = self.dense / "dense.json"
        self.groups_file = self.dense / "groups.json"
        self.logs = self.root / "logs"
        self.mlflow_database = self.root / "mlflow.db"
        self.mlflow_artifacts = self.root / "mlartifacts"
        self.spool = self.root / "spool"
        self._candidates = self.root / "candidates"
        self._sparse = self.root / "sparse"

    # --- whose folder it is -----------------------------------------------------------------

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise unless the folder is free, or holds the search that `identity` describes."""
        if self.root.exists() and not self.root.is_dir():
            raise AutopruneError(f"`--out` must be a folder, but {self.root} is a file.")
        if not self.identity_file.exists():
            if self.root.is_dir() and any(p.name != ".lock" for p in self.root.iterdir()):
                raise AutopruneError(
                    f"`--out` must be empty or hold this study's search, but {self.root} holds "
                    f"other files. Use another folder."
                )
            return
        known = read_json(self.identity_file)
        if known.get("format") != FORMAT:
            raise AutopruneError(
                f"`--out` must be of format {FORMAT}, but {self.root} is of format "
                f"{known.get('format')}: another version of autoprune wrote it. Use another folder."
            )
        for key, value in identity.items():
            if known.get(key) != value:
                raise AutopruneError(
                    f"`--out` must be empty or hold this study's search, but {self.root} holds "
                    f"another: its {key} is {_brief(known.get(key))}, not {_brief(value)}. "
                    f"Use another folder."
                )

    def open(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Create the folder if need be; return the identity on disk, with the search's id."""
        self.check(identity)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.identity_file.exists():
                write_json(
                    self.identity_file, {"format": FORMAT, "id": uuid.uuid4().hex, **identity}
                )
        except OSError as error:
            raise AutopruneError(
                f"`--out` must be a folder that can be written, but {self.root} cannot: "
                f"{error.strerror or error}."
            ) from error
        known: dict[str, Any] = read_json(self.identity_file)
        return known

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process: two drivers on one folder would break each other."""
        import fcntl

        with (self.root / ".lock").open("a+") as file:
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

    def save_candidate(self, candidate: Candidate) -> None:
        write_json(self.folder(candidate.name) / "candidate.json", candidate.to_json())

    def load_candidate(self, name: str) -> Candidate:
        return Candidate.from_json(read_json(self.folder(name) / "candidate.json"))

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

    def save_grouping(self, grouping: Grouping) -> None:
        write_json(self.groups_file, to_json(grouping))

    def load_grouping(self) -> Grouping:
        return from_json(read_json(self.groups_file))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
