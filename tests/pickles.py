"""Finding pickles: in files, in archives inside of them, and as they are loaded."""

from __future__ import annotations

import contextlib
import io
import pickletools
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HARMLESS = {
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch LongStorage",
    "collections OrderedDict",
}
"""What a file of tensors names, and torch's `weights_only` reader knows without unpickling."""

_unpickled: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "pickle.find_class":
        _unpickled.append(" ".join(map(str, arguments[-2:])))


sys.addaudithook(_watch)


@contextlib.contextmanager
def unpickled() -> Iterator[list[str]]:
    """Yield the list of all that any of Python's unpicklers looks up by its name meanwhile."""
    global _watching
    _unpickled.clear()
    _watching = True
    try:
        yield _unpickled
    finally:
        _watching = False


def pickles_in(folder: Path) -> dict[str, set[str]]:
    """Return every pickle in the files of a folder, archives included, and what each one names."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(_pickles(str(path.relative_to(folder)), path.read_bytes()))
    return found


def _pickles(name: str, content: bytes) -> Iterator[tuple[str, set[str]]]:
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for inner in archive.namelist():
                yield from _pickles(f"{name}/{inner}", archive.read(inner))
        return
    if not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return
    names, strings = set(), [""]
    with contextlib.suppress(ValueError):  # what only began like one
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "STACK_GLOBAL":
                names.add(" ".join(strings[-2:]))
            elif operation.name == "GLOBAL":
                names.add(str(argument))
            elif isinstance(argument, str):
                strings.append(argument)
        yield name, names
