"""Limits that a picked model must keep to, and what is nearest if none does. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoprune.results.choosing import point_of
from autoprune.results.result import Model, SearchResult

NEAREST = 2
"""How many models are named when none is within the limits."""
Latencies = Mapping[str, float | None]
"""Milliseconds by model; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model must keep to; None is no limit. Scores are those on validation."""

    max_params: int | None = None
    min_accuracy: float | None = None
    """The worst score; an upper bound where lower is better."""
    max_latency: float | None = None
    """Milliseconds."""
    max_loss: float | None = None
    """Points below the dense model's score, see `choosing.point_of`."""

    def meant_by(self, choose: str | None) -> Limits:
        """Return the limits of a choice: the smallest may lose a point, if no score is asked for.

        >>> Limits().meant_by("smallest").max_loss, Limits(max_loss=3).meant_by("smallest").max_loss
        (1.0, 3)
        """
        if choose == "smallest" and self.min_accuracy is None and self.max_loss is None:
            return replace(self, max_loss=1.0)
        return self

    def described(self, *, higher_is_better: bool) -> str:
        """Say what is asked of a model, to go after "has"."""
        word = "least" if higher_is_better else "most"
        parts = []
        if self.max_params is not None:
            parts.append(f"at most {self.max_params:,} parameters")
        if self.min_accuracy is not None:
            parts.append(f"a score of at {word} {self.min_accuracy:g}")
        if self.max_latency is not None:
            parts.append(f"a latency of at most {self.max_latency:g} ms")
        if self.max_loss is not None:
            parts.append(f"at most {self.max_loss:g} points of loss")
        return " and ".join(parts)


def gaps(result: SearchResult, model: Model, limits: Limits, latencies: Latencies) -> list[float]:
    """Return how far a model is beyond each limit, in comparable units; 0 is within."""
    sign, dense = 1.0 if result.higher_is_better else -1.0, result.dense
    rounding = 1e-9 * max(abs(dense.valid), 1.0)  # scores are counts over a split
    point = point_of(dense.valid, higher_is_better=result.higher_is_better) or 1.0
    beyond = []
    if limits.max_params is not None:
        beyond.append(math.log(max(model.params, 1) / limits.max_params))
    if limits.max_latency is not None:
        known = latencies.get(model.name)
        latency = math.inf if known is None else known
        beyond.append(math.log(latency / limits.max_latency) if latency else 0.0)
    if limits.min_accuracy is not None:
        beyond.append((sign * (limits.min_accuracy - model.valid) - rounding) / point / 10)
    if limits.max_loss is not None:
        lost = sign * (dense.valid - model.valid) - rounding
        beyond.append((lost / point - limits.max_loss) / 10)
    return [max(gap, 0.0) for gap in beyond]


def nothing_within(result: SearchResult, limits: Limits, latencies: Latencies) -> str:
    """Say that no model is within the limits, and what the nearest two are."""
    if not result.front:
        return f"The front of {result.out} is empty: no trial was completed."
    nearest = sorted(
        result.front, key=lambda m: (sum(gaps(result, m, limits, latencies)), m.params)
    )
    wanted = limits.described(higher_is_better=result.higher_is_better)
    named = " and ".join(_described(m, latencies.get(m.name)) for m in nearest[:NEAREST])
    return (
        f"No model on the front of {result.study!r} has {wanted}: the nearest "
        f"{'is' if len(nearest) == 1 else 'are'} {named}. Ask for less, or search longer."
    )


def _described(model: Model, latency: float | None) -> str:
    measured = "" if latency is None else f", {latency:.3g} ms"
    return f"{model.name} ({model.params:,} parameters, {model.valid:.4f}{measured})"
