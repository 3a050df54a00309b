"""Iterative pruning: in which steps a plan's widths are reached, and how long each is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.pruning.plan import Plan

FINAL_SHARE = 0.5
"""Share of the epochs, at least, for the final widths."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Widths to cut to, and for how many epochs to train then."""

    widths: Mapping[str, int]
    epochs: int


def steps_of(plan: Plan, parent: Mapping[str, int]) -> list[Step]:
    """Return the steps from `parent`'s widths to those of `plan`; the last has the plan's own.

    In step i of k a group that goes from p to w channels has p * (w/p)^(i/k) of them (Han et al.
    2015 prune and train in turns; the geometric schedule is Frankle & Carbin's, 2019: the same
    share goes each time). The plan's epochs are split: half of them, at most, go in equal parts to
    the widths between, at least one to each, and the rest to the final widths. With fewer epochs
    than steps there are only as many steps as epochs, and steps that would cut nothing are left
    out.

    Examples
    --------
    >>> from autoprune.pruning.plan import FineTune
    >>> tuning = FineTune(epochs=9, lr=1e-3)
    >>> plan = Plan(widths={"a": 8, "b": 3}, criterion="l2", finetune=tuning, steps=3)
    >>> for step in steps_of(plan, {"a": 64, "b": 3}):
    ...     print(step.widths, step.epochs)
    {'a': 32, 'b': 3} 2
    {'a': 16, 'b': 3} 2
    {'a': 8, 'b': 3} 5
    """
    epochs = plan.finetune.epochs
    count = max(min(plan.steps, epochs), 1)
    found: list[Mapping[str, int]] = []
    for number in range(1, count):
        widths = {n: _between(parent[n], w, number / count) for n, w in plan.widths.items()}
        if widths not in (parent, plan.widths, *found[-1:]):
            found.append(widths)
    each = max(int((1 - FINAL_SHARE) * epochs) // len(found), 1) if found else 0
    return [
        *(Step(widths=widths, epochs=each) for widths in found),
        Step(widths=plan.widths, epochs=epochs - each * len(found)),
    ]


def _between(start: int, end: int, share: float) -> int:
    if not end:  # a block, dropped in the last step
        return start
    return max(end, round(start * math.exp(share * math.log(end / start))))
