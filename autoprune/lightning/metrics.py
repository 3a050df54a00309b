"""The torchmetrics of a module: what they are told sums up over batches until they are reset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_FOUND: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
"""Metrics by module, so that a step need not look for them again."""


def is_metric(value: object) -> bool:
    """Return whether a value is a torchmetrics metric."""
    return any(
        kind.__name__ == "Metric" and kind.__module__.startswith("torchmetrics.")
        for kind in type(value).__mro__
    )


def metrics_in(model: nn.Module) -> list[Any]:
    """Return the metrics among a module's parts."""
    _FOUND[model] = [part for part in model.modules() if is_metric(part)]
    return _FOUND[model]


def known_metrics(model: nn.Module) -> list[Any]:
    """Return the metrics that were last found in a module."""
    return _FOUND[model] if model in _FOUND else metrics_in(model)


def reset(metrics: list[Any]) -> None:
    """Forget what metrics were told."""
    for metric in metrics:
        metric.reset()


@contextmanager
def set_aside(metrics: list[Any]) -> Iterator[None]:
    """Let metrics start anew, and leave them as they were."""
    # A reset empties lists in place.
    before = [
        {name: list(v) if isinstance(v, list) else v for name, v in vars(metric).items()}
        for metric in metrics
    ]
    reset(metrics)
    try:
        yield
    finally:
        for metric, values in zip(metrics, before, strict=True):
            vars(metric).update(values)
