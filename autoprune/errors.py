"""Errors that a user can fix. Each message states the rule, then the value, then the way out."""

from __future__ import annotations

import difflib
import errno
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autoprune.redaction import redacted

LONGEST_VALUE = 100
"""Characters of a value that an error shows."""


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


Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
"""What each value of an object must be, by its name: a test, and words for it."""


def check_values(values: object, rules: Rules, *, prefix: str = "") -> None:
    """Raise `AutopruneError` for the first value of an object that breaks its rule."""
    for name, (holds, words) in rules.items():
        value = getattr(values, name)
        if not holds(value):
            text = repr(value)
            brief = len(text) <= LONGEST_VALUE and text.isprintable()
            raise AutopruneError(
                f"`{prefix}{name}` must be {words}, but is "
                f"{text if brief else f'a value of type {type(value).__name__}'}."
            )


def is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    """Return whether a value is a whole number, low <= value < high."""
    return type(value) is int and low <= value < high


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    """Return whether a value is a finite number, low <= value <= high."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and low <= value <= high and value < math.inf


def first_line(error: BaseException) -> str:
    """Return the error as one line, ``Type: message``, however long its message is.

    >>> first_line(ValueError("bad\\nworse"))
    'ValueError: bad'
    """
    lines = redacted(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
