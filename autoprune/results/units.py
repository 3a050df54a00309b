"""Numbers as people write them: ``50k`` parameters, ``2ms``, ``98%``. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from autoprune.errors import AutopruneError

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
MILLISECONDS = {"": 1.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
POINTS = {"": 1.0, "%": 1.0}
SHARES = {"": 1.0, "%": 0.01}
NUMBER = re.compile(r"([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([a-zµ%]*)", re.IGNORECASE)


def count(name: str, text: str | float) -> int:
    """Return a count: a plain number, or one in thousands, millions or billions.

    Raises
    ------
    AutopruneError
        If it is no number, not above 0, or has another unit; `name` says whose it is.

    Examples
    --------
    >>> count("max_params", "50k"), count("max_params", "1.5M"), count("max_params", 1234)
    (50000, 1500000, 1234)
    """
    return round(_positive(name, _parsed(name, text, COUNTS, "50000, 50k or 1.5M")))


def milliseconds(name: str, text: str | float) -> float:
    """Return a time in milliseconds, which it is in if it has no unit.

    >>> milliseconds("max_latency", "2ms"), milliseconds("max_latency", "500us")
    (2.0, 0.5)
    """
    return _positive(name, _parsed(name, text, MILLISECONDS, "2ms, 500us or 0.1s"))


def share(name: str, text: str | float) -> float:
    """Return a score: a plain number, or one in percent.

    >>> share("min_accuracy", "0.98"), share("min_accuracy", "98%")
    (0.98, 0.98)
    """
    return _parsed(name, text, SHARES, "0.98 or 98%")


def points(name: str, text: str | float) -> float:
    """Return a loss in points; a percent is one, too.

    >>> points("max_loss", "1"), points("max_loss", "0.5%")
    (1.0, 0.5)
    """
    value = _parsed(name, text, POINTS, "1 or 0.5")
    if value < 0:
        raise AutopruneError(f"`{name}` must be at least 0, but is {value:g}.")
    return value


def _parsed(name: str, text: str | float, units: Mapping[str, float], examples: str) -> float:
    if not isinstance(text, str):
        value, unit = float(text), ""
    else:
        found = NUMBER.fullmatch(text.strip())
        if found is None:
            raise AutopruneError(f"`{name}` must be a number such as {examples}, but is {text!r}.")
        value, unit = float(re.sub("[_,]", "", found[1])), found[2].lower()
    if unit not in units:
        known = ", ".join(u for u in units if u)
        raise AutopruneError(
            f"`{name}` must be a number such as {examples}, but {text!r} has the unknown unit "
            f"{unit!r}. Use {'one of ' if ',' in known else ''}{known}, or none."
        )
    if not math.isfinite(value):
        raise AutopruneError(f"`{name}` must be a number such as {examples}, but is {text!r}.")
    return value * units[unit]


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise AutopruneError(f"`{name}` must be more than 0, but is {value:g}.")
    return value
