"""Numbers as people read them."""

from __future__ import annotations

import math


def milliseconds(seconds: float | None) -> str:
    """Write a latency with three digits.

    >>> milliseconds(0.0123456), milliseconds(0.000123456), milliseconds(None)
    ('12.3 ms', '0.123 ms', '-')
    """
    if seconds is None:
        return "-"
    digits = max(2 - math.floor(math.log10(max(1e3 * seconds, 1e-3))), 0)
    return f"{1e3 * seconds:.{digits}f} ms"


def duration(seconds: float | None) -> str:
    """Write how long something takes; nothing if that is not known.

    >>> duration(4000), duration(125), duration(5), duration(None)
    ('1 h 06 min', '2 min 05 s', '5 s', '')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
