"""What differs between the search that a folder holds and the one that is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LATER = ("study_settings", "train", "checkpoint", "weights", "data", "answers")
"""What earlier versions did not write down."""
BEFORE = {"study_settings.optimizer": "adamw", "train.optimizer": "adamw"}
"""What a setting was before there was a choice."""
OPAQUE = {
    "data.train": "training data",
    "data.valid": "validation data",
    "data.test": "test data",
    "answers.model": "model's code or layers",
    "answers.loss": "loss",
    "checkpoint": "checkpoint",
    "weights": "model's weights",
    "storage": "storage",
}
"""What a digest stands for."""
TOLERANCE = 1e-3
"""By how much answers differ between machines and versions at most, in shares."""


def what_changed(known: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in a few words what differs between a search on disk and this one; None if nothing does.

    >>> what_changed({"seed": 0}, {"seed": 1})
    'its seed is 0, not 1'
    """
    for key, value in now.items():
        if key not in known and key in LATER:
            continue
        found = _difference(key, known.get(key), value)
        if found is not None:
            return found
    return None


def with_test_of(known: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `now` with the test data of `known`: no difference before anything was tested."""
    before, data = known.get("data"), now.get("data")
    if not isinstance(before, Mapping) or not isinstance(data, Mapping):
        return now
    return {**now, "data": {**data, "test": before.get("test")}}


def _difference(path: str, known: Any, now: Any) -> str | None:
    if isinstance(known, Mapping) and isinstance(now, Mapping):
        for key in {**known, **now}:
            inner = f"{path}.{key}"
            found = _difference(inner, known.get(key, BEFORE.get(inner)), now.get(key))
            if found is not None:
                return found
        return None
    if known == now or (path.startswith("answers.") and _near(known, now)):
        return None
    if path in OPAQUE:
        return f"its {OPAQUE[path]} changed"
    name = path.removeprefix("study_settings.")
    return f"its {name} is {_brief(known)}, not {_brief(now)}"


def _near(known: Any, now: Any) -> bool:
    """Return whether answers are the same for all that can be told."""
    if known is None or now is None:
        return True
    return len(known) == len(now) and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-6) for a, b in zip(known, now, strict=True)
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
