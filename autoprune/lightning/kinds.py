"""What is a Lightning module, and which of its hooks its class has of its own.

Lightning comes as two packages, `lightning` and `pytorch_lightning`, whose classes differ; whoever
has made a module has imported the right one. So classes are told by their name and home.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

PACKAGES = ("lightning.pytorch.", "pytorch_lightning.")


def base_of(thing: object, name: str) -> type | None:
    """Return Lightning's class `name` among the bases of an object's class; None if it is none."""
    return next(
        (
            kind
            for kind in type(thing).__mro__
            if kind.__name__ == name and kind.__module__.startswith(PACKAGES)
        ),
        None,
    )


def is_own(thing: object, base: type, hook: str) -> bool:
    """Return whether an object has a hook of its own, not the one of Lightning's `base`."""
    return hook in vars(thing) or getattr(type(thing), hook, None) is not getattr(base, hook, None)


def call_step(step: Callable[..., Any], batch: Any, number: int) -> Any:
    """Call a step as Lightning does: with the batch's number if it takes one."""
    named = inspect.signature(step).parameters.values()
    takes = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in named)
    rest = any(p.kind == p.VAR_POSITIONAL for p in named)
    return step(batch, number) if rest or takes > 1 else step(batch)
