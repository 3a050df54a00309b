"""Short digests of data, and what a model and a loss answer: to notice that a study has changed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autoprune.pruning.forward import call, tensors_of
from autoprune.training.task import Split, Task

_T = TypeVar("_T")

MOST_BYTES = 1 << 28
"""Of larger tensors, evenly spread rows stand for all."""
BATCH = 64


def content_digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of what tensors hold.

    >>> content_digest([torch.zeros(3)]) == content_digest([torch.zeros(4)])
    False
    """
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        rows = tensor.detach().cpu()
        size = rows.numel() * rows.element_size()
        if size > MOST_BYTES and rows.dim():
            count = max(len(rows) * MOST_BYTES // size, 1)
            rows = rows[torch.linspace(0, len(rows) - 1, count).round().long()]
        found.update(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def split_fingerprint(task: Task, split: Split) -> str | None:
    """Return a digest of a split's data; None if the task has none, or it cannot be told.

    Data in memory count whole; of a `Dataset`, a loader or a task of one's own, the first batch
    and how many there are. What is drawn anew each time cannot be told.
    """
    if split == "test" and not getattr(task, "has_test", True):
        return None
    own: Callable[[Split], str | None] | None = getattr(task, "fingerprint", None)
    if own is not None:
        found = own(split)
        if found is not None:
            return found
    return _twice(lambda: _first_batch(task, split))


def _first_batch(task: Task, split: Split) -> str:
    batches = task.batches(split, batch_size=BATCH, seed=None)
    first = list(itertools.islice(batches, 1))
    tensors = [t for b in first for t in (*tensors_of(b.inputs), *tensors_of(b.targets))]
    return f"{len(batches)}x{content_digest(tensors)}"


def answers(model: nn.Module, example: Any, task: Task) -> dict[str, list[float] | None]:
    """Return what a model with drawn weights answers to its example, and the loss on some data.

    The weights are the same for models with the same tensors, so that only what the model's code
    and the loss do with them makes a difference. None for what cannot be told.
    """
    asked = _drawn(model)
    return {
        "model": _twice(lambda: _statistics(call(asked, example))),
        "loss": _twice(lambda: _loss(asked, task)),
    }


def _drawn(model: nn.Module) -> nn.Module:
    drawn = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in drawn.parameters():
            if parameter.is_floating_point():
                # He et al. 2015: what goes through layers stays of one size.
                reads = parameter.numel() // max(len(parameter), 1) if parameter.dim() > 1 else 8
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * math.sqrt(2 / max(reads, 1)))
    return drawn


def _statistics(outputs: Any) -> list[float]:
    """Return the mean and the root mean square of each tensor."""
    found = []
    for tensor in tensors_of(outputs):
        values = tensor.detach().double()
        found += [float(values.mean()), float(values.square().mean().sqrt())]
    return found


def _loss(model: nn.Module, task: Task) -> list[float]:
    batch = next(iter(task.batches("valid", batch_size=BATCH, seed=None)))
    return [float(task.step(model, batch)[0])]


def _twice(ask: Callable[[], _T]) -> _T | None:
    """Return an answer that is the same when it is asked for again; None for any other."""
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            first = ask()
            torch.manual_seed(1)
            second = ask()
    except Exception:  # it is asked for once more where it matters, and is reported there
        return None
    finally:
        torch.set_rng_state(state)
    numbers = first if isinstance(first, list) else []
    return first if first == second and all(map(math.isfinite, numbers)) else None
