"""Small files: written whole or not at all, read with an error that names them. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, first_line, is_full, without_room


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
        check_regular(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AutopruneError(
            f"{path} must be a readable JSON file, but reading it gave "
            f"{first_line(error)}. Was it altered or cut short?"
        ) from error


def check_regular(path: Path) -> None:
    """Raise `OSError` for what is there and is no file: a pipe or a device would never end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")


def write_signed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object that carries its own checksum, whole."""
    write_json(path, {**content, "checksum": checksum(content)})


def read_signed(path: Path, *, way_out: str) -> dict[str, Any]:
    """Read what `write_signed` wrote; raise `AutopruneError` as `check_signed` does."""
    return check_signed(path, read_json(path), way_out=way_out)


def check_signed(path: Path, value: Any, *, way_out: str, required: bool = True) -> dict[str, Any]:
    """Return what was read of a file that carries its own checksum.

    Parameters
    ----------
    way_out
        What to do about an altered file, as a sentence.
    required
        Whether a file without a checksum, as an earlier version wrote it, is altered.

    Raises
    ------
    AutopruneError
        If it is not as it was written.
    """
    if isinstance(value, dict):
        if "checksum" not in value and not required:
            return value
        with contextlib.suppress(RecursionError):
            if value.get("checksum") == checksum(value):
                return value
    raise AutopruneError(
        f"{path} must be as autoprune wrote it, but its checksum does not fit its content: "
        f"it was altered. {way_out}"
    )


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON content, its own ``checksum`` left out."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
