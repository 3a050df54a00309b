"""What a method has finished, and what it had spent by then."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from autoprune.training.task import Task


def size_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Record:
    """What a method has finished: models in order, with all that was spent until each.

    Weights are kept of models that were on the validation front when they were finished: of no
    others is the test score ever read.
    """

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._weights: dict[int, nn.Module] = {}
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def add(
        self,
        model: nn.Module | None,
        valid: float,
        *,
        epochs: float,
        params: int | None = None,
        spent: Mapping[str, float] | None = None,
    ) -> None:
        """Record a finished model.

        `epochs` are those since the last one. Without the model itself its `params` are needed; it
        must then be one that others beat. `spent` is what was spent when it was finished, if that
        is not now.
        """
        before = self.models[-1]["epochs"] if self.models else 0
        params = size_of(model) if params is None else params
        if not any(m["params"] <= params and m["valid"] >= valid for m in self.models):
            assert model is not None, "a model on the front has weights"
            self._weights[len(self.models)] = copy.deepcopy(model)
        spent = spent or self.spent()
        self.models.append({"params": params, "valid": valid, "epochs": before + epochs, **spent})

    def spent(self) -> dict[str, float]:
        """Return seconds since the start: this process's CPU time, and what a clock says."""
        return {
            "cpu": round(time.process_time() - self._cpu, 3),
            "wall": round(time.perf_counter() - self._wall, 3),
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Charge nothing of what is done meanwhile."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self._cpu += time.process_time() - cpu
            self._wall += time.perf_counter() - wall

    def read_test(self, task: Task) -> None:
        """Score on test what was on the front; the method has ended by now."""
        for number, model in self._weights.items():
            self.models[number]["test"] = task.evaluate(model, "test")
