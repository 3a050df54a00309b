"""Objectives: the score, and the costs that it is traded against."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoprune.errors import AutopruneError, unknown
from autoprune.searching.candidate import Score

SCORE = ("accuracy", "score")
"""Names of the task's score, whatever its metric is, beside the metric's own."""
COSTS = {
    "params": "params",
    "macs": "macs",
    "size": "size_bytes",
    "memory": "memory",
    "latency": "latency",
}
"""Costs by name, with the field of a `Score` that holds each."""
DEFAULT_COSTS = ("params",)
"""The costs of a search that is asked for no others."""


def cost_of(score: Score, name: str) -> float:
    """Return what a score says of a cost; infinity where it was not measured."""
    value: float | None = getattr(score, COSTS[name])
    return math.inf if value is None else float(value)


def costs_among(objectives: Sequence[str], *, metric: str) -> tuple[str, ...]:
    """Return the costs that `objectives` names, in one order however they were given.

    Raises
    ------
    AutopruneError
        If a name is unknown or comes twice, or the score or a cost is missing.

    Examples
    --------
    >>> costs_among(["latency", "params", "f1"], metric="f1")
    ('params', 'latency')
    """
    scores = {*SCORE, metric} - set(COSTS)
    for name in objectives:
        if name not in scores and name not in COSTS:
            raise unknown("objective", name, [*scores, *COSTS])
    asked = [name for name in objectives if name in scores]
    costs = tuple(name for name in COSTS if name in objectives)
    if len(asked) != 1 or not costs or len(objectives) != 1 + len(costs):
        raise AutopruneError(
            f"`objectives` must be the score ({' or '.join(sorted(scores))}) and at least one of "
            f"{', '.join(COSTS)}, each once, but is {','.join(objectives) or 'empty'}."
        )
    return costs
