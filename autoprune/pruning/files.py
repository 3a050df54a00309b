"""Small files: written whole or not at all, read with an error that names them. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, is_full, without_room


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` so that `path` either holds all of it or what it held before.

    Raises
    ------
    RoomError
        If there is no room.
    """
    try:
        _write(path, content)
    except OSError as error:
        if is_full(error):
            raise without_room(error, path) from error
        raise


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `AutopruneError` if it is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AutopruneError(
            f"{path} must be a readable JSON file, but reading it gave {type(error).__name__}: "
            f"{error}. Was it altered or cut short?"
        ) from error


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON content, its own ``checksum`` left out."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
