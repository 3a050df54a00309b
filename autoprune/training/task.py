"""The task: the data, what training minimises and what counts as good.

Anything that has these methods is a task; `SupervisedTask` is the ready-made one, and the usual
way to a training step of your own is to subclass it and override `step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some samples of a split."""

    inputs: Any
    """What the model is called with: a tensor, a tuple (positional) or a dict (by keyword)."""
    targets: Any = None
    index: Tensor | None = None
    """Positions in the training split, if the same position always has the same inputs. The dense
    model's outputs are then computed once and cached."""


class Batches(Protocol):
    """Batches that can be counted and gone through, such as a list or a `DataLoader`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@runtime_checkable
class Task(Protocol):
    """What autoprune needs to know to train and judge a model.

    A task may also have a method ``optimisation``, which see in `training.optimise`, to train by an
    optimiser of its own; and ``rehearse(model, split)``, which runs a model on one batch of a split
    as ``evaluate`` would, to find out before a search whether the test split can be used.
    """

    metric: str
    """Name of the score, e.g. ``accuracy``."""
    higher_is_better: bool

    def batches(self, split: Split, *, batch_size: int, seed: int | None) -> Batches:
        """Return the batches of `split`: shuffled by `seed`, or in fixed order without one."""
        ...

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Return the mean loss of `model` on `batch`, and its outputs.

        The outputs are compared with the dense model's in distillation; return None to do without.
        """
        ...

    def distance(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        """Return how far `outputs` are from the dense model's: the distillation loss."""
        ...

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return the score of `model` on `split`."""
        ...


TASK_METHODS = ("metric", "higher_is_better", "batches", "step", "distance", "evaluate")


def missing_methods(task: object) -> list[str]:
    """Return what `task` lacks to be a `Task`."""
    return [name for name in TASK_METHODS if not hasattr(task, name)]
