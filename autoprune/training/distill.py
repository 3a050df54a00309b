"""The teacher: the dense model's outputs, cached where the inputs never change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoprune.training.device import autocast, device_of, to_device
from autoprune.training.task import Batch, Task

CACHE_LIMIT_BYTES = 1 << 29
_CACHE_BATCH = 256


class Teacher:
    """Answers what the dense model says of a batch.

    Where batches carry an `index` and the outputs are one tensor of moderate size, the dense model
    runs once over the training split; otherwise it runs on every batch. The model is the teacher's
    from then on: frozen, in evaluation mode.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self._model = model.eval().requires_grad_(False)
        self._device = device_of(model)
        self._task = task
        self._cache: Tensor | None = None
        self._cacheable = True

    def outputs(self, batch: Batch) -> Any:
        """Return the dense model's outputs for `batch`, on the model's device."""
        if batch.index is None:
            return self._answer(batch)
        if self._cache is None and self._cacheable:
            self._fill()
        if self._cache is None:
            return self._answer(batch)
        return self._cache[batch.index.to(self._cache.device)].to(self._device)

    def _answer(self, batch: Batch) -> Any:
        with torch.no_grad(), autocast(self._device):
            return self._task.step(self._model, to_batch(batch, self._device))[1]

    def _fill(self) -> None:
        batches = self._task.batches("train", batch_size=_CACHE_BATCH, seed=None)
        total = 0
        parts: list[tuple[Tensor, Tensor]] = []
        for batch in batches:
            answer = self._answer(batch)
            if not isinstance(answer, Tensor) or batch.index is None:
                self._cacheable = False
                return
            parts.append((batch.index, answer.cpu()))
            total += answer.numel() * answer.element_size()
            if total > CACHE_LIMIT_BYTES:
                self._cacheable = False
                return
        index = torch.cat([i for i, _ in parts])
        answers = torch.cat([a for _, a in parts])
        cache = torch.empty((int(index.max()) + 1, *answers.shape[1:]), dtype=answers.dtype)
        cache[index] = answers
        self._cache = cache


def to_batch(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to `device`; its index stays where it is."""
    if device.type == "cpu":
        return batch
    inputs, targets = to_device((batch.inputs, batch.targets), device)
    return Batch(inputs=inputs, targets=targets, index=batch.index)
