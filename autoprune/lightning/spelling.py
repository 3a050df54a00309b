"""What schedulers and optimisers hold, as JSON that comes back as it was.

JSON alone makes text of a dict's whole-number keys, such as MultiStepLR's milestones, and lists of
tuples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

KIND, ENTRIES = "kind", "entries"
KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "dict": dict,
    "Counter": lambda pairs: Counter(dict(pairs)),
}


def spelled_out(value: dict[str, Any]) -> dict[str, Any] | None:
    """Return JSON that `as_it_was` makes the same value of; None if there is none.

    >>> as_it_was(spelled_out({"betas": (0.9, 0.99), "milestones": Counter([2, 2])}))
    {'betas': (0.9, 0.99), 'milestones': Counter({2: 2})}
    >>> spelled_out({"device": object()})
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(_spelled(value)))
        same = bool(as_it_was(found) == value)
    except (TypeError, ValueError):  # a scheduler may hold anything
        return None
    return found if same else None


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        pairs = [(key, _spelled(entry)) for key, entry in value.items()]
        if type(value) is dict and all(type(key) is str for key in value) and KIND not in value:
            return dict(pairs)
        return {KIND: "Counter" if isinstance(value, Counter) else "dict", ENTRIES: pairs}
    if isinstance(value, tuple):
        return {KIND: "tuple", ENTRIES: [_spelled(entry) for entry in value]}
    if isinstance(value, list):
        return [_spelled(entry) for entry in value]
    return value


def as_it_was(told: Any) -> Any:
    """Return what `spelled_out` was given."""
    if isinstance(told, list):
        return [as_it_was(entry) for entry in told]
    if not isinstance(told, dict):
        return told
    if KIND not in told:
        return {key: as_it_was(entry) for key, entry in told.items()}
    return KINDS[told[KIND]](as_it_was(told[ENTRIES]))
