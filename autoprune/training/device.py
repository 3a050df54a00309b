"""Where tensors live and in what precision: the one place that knows about accelerators."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.forward import map_tensors

Item = TypeVar("Item")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; ``auto`` is the first GPU, or the CPU without one.

    Raises
    ------
    AutopruneError
        If the name is no device, or that device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AutopruneError(
            f"`device` must be one of this machine's, e.g. 'cpu' or 'cuda:0', but {name!r} is not."
        ) from error
    return device


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter lives; the CPU if it has none."""
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a nest to `device`; one that is in it twice is moved once."""
    there: dict[int, torch.Tensor] = {}

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in there:
            there[id(tensor)] = tensor.to(device, non_blocking=True)
        return there[id(tensor)]

    return map_tensors(moved, value)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where it pays: bfloat16 on GPUs that have it, nothing on the CPU.

    bfloat16 has float32's range, so gradients need no scaling.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def worker_environments() -> list[dict[str, str]]:
    """Return, one per worker in turn, the variables that give each worker a GPU of its own."""
    count = torch.cuda.device_count()
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    names = visible[:count] or [str(number) for number in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names] or [{}]


KERNELS_A_LAYER = 8
"""Forward, backward and weight gradient, at the batch sizes of training and of scoring."""
FEWEST_KERNELS, MOST_KERNELS = 16, 512


def kernel_caches(layers: int) -> dict[str, str]:
    """Return the variables that keep torch from hoarding kernels for shapes that are gone.

    oneDNN and torch's own layer above it keep 1,024 kernels each by default. Every plan has other
    shapes, so a worker's memory would grow with each trial; what one model of so many `layers`
    needs is kept.
    """
    kept = str(min(max(KERNELS_A_LAYER * layers, FEWEST_KERNELS), MOST_KERNELS))
    return {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": kept, "LRU_CACHE_CAPACITY": kept}


def use_threads(count: int) -> None:
    """Give this process so many compute threads: workers share the cores, threads would fight."""
    torch.set_num_threads(count)


SEEDS = 2**32
"""How many seeds there are: NumPy's old generators, which Optuna draws from, take no larger one."""


def seed_beside_torch(seed: int) -> None:
    """Seed the global random states of NumPy and Python: a user's data may draw from them."""
    np.random.seed(seed % SEEDS)
    random.seed(seed)


class OwnRandomState:
    """A context in which random numbers are drawn from states of its own.

    They are those of torch, NumPy and Python. Whenever it is left, the caller's are as they were;
    when it is entered again, its own go on.
    """

    def __init__(self) -> None:
        self._own: tuple[Any, ...] | None = None
        self._callers: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        self._callers = _random_state()
        if self._own is not None:
            _set_random_state(self._own)

    def __exit__(self, *_: object) -> None:
        assert self._callers is not None
        self._own = _random_state()
        _set_random_state(self._callers)


def drawn(items: Iterable[Item], seed: int) -> Iterator[Item]:
    """Iterate with random states that begin with `seed`; the caller's are left alone."""
    own = OwnRandomState()
    with own:
        torch.manual_seed(seed)
        seed_beside_torch(seed)
        iterator = iter(items)
    while True:
        with own:
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _random_state() -> tuple[Any, ...]:
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = torch.cuda.get_rng_state_all() if begun else []
    return torch.get_rng_state(), gpus, np.random.get_state(), random.getstate()


def _set_random_state(state: tuple[Any, ...]) -> None:
    cpu, gpus, numpys, pythons = state
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
    np.random.set_state(numpys)
    random.setstate(pythons)
