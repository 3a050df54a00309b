"""Errors that a user can fix. Each message states the rule, then the value, then the way out."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from autoprune.redaction import redacted


class AutopruneError(Exception):
    """Something the user can fix: one line, shown without a traceback, exit code 2."""


class TrialError(AutopruneError):
    """One trial cannot go on, as when its loss becomes NaN. The search goes on without it."""


class RoomError(AutopruneError):
    """Nothing more can be written, as when the disk is full: the search stops where it is."""


def is_full(error: BaseException) -> bool:
    """Return whether something could not be written as there is no room: on the disk, or allowed.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device"))
    True
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full


def without_room(error: OSError, what: object) -> RoomError:
    """Build the error for what could not be written, by an error that `is_full`."""
    return RoomError(
        f"There must be room to write {what}, but there is none: {error.strerror}. "
        f"Make room, and the same command goes on."
    )


def unknown(kind: str, name: object, choices: Iterable[str]) -> AutopruneError:
    """Build the error for a name that is in no registry: the choices, and the nearest one.

    >>> print(unknown("criterion", "tailor", ["l2", "taylor"]))
    Unknown criterion 'tailor'. Choose one of: l2, taylor. Did you mean 'taylor'?
    """
    known = sorted(choices)
    message = f"Unknown {kind} {name!r}. Choose one of: {', '.join(known)}."
    near = difflib.get_close_matches(str(name), known, n=1)
    return AutopruneError(f"{message} Did you mean {near[0]!r}?" if near else message)


def first_line(error: BaseException) -> str:
    """Return the error as one line, ``Type: message``, however long its message is.

    >>> first_line(ValueError("bad\\nworse"))
    'ValueError: bad'
    """
    lines = redacted(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
