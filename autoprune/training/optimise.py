"""What makes the steps of a training run: an optimiser, and how its learning rate goes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from autoprune.pruning.plan import FineTune
from autoprune.training.optimizers import FusedAdamW, Muon, matrices
from autoprune.training.regularise import Regulariser
from autoprune.training.task import Task

WARMUP = 0.2
"""Share of the steps in which the learning rate rises."""
START = 0.1
"""Share of the peak learning rate to start at."""


class Optimizer(Protocol):
    """What training needs of an optimiser; those of `torch.optim` have it."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> MutableMapping[Tensor, dict[str, Any]]:
        """By parameter, what changes from step to step."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> Any: ...


class Optimisation(ABC):
    """What `finetune` calls around each step and each epoch.

    A task with an optimiser of its own returns one from its method
    ``optimisation(model, settings, steps, extra)``; the arguments are those of `OneCycle`.
    """

    @property
    @abstractmethod
    def optimizers(self) -> Sequence[Optimizer]:
        """Those whose state a checkpoint has to hold."""

    @property
    @abstractmethod
    def lr(self) -> float:
        """Learning rate of the next step."""

    def before_epoch(self, epoch: int) -> None:  # noqa: B027
        """Run before the first batch of an epoch; they count from 1."""

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Change the weights by their gradients."""
        for optimizer in self.optimizers:
            optimizer.step()

    @abstractmethod
    def after_step(self) -> None:
        """Set the learning rate of the step that follows."""

    def after_epoch(self, valid: float) -> None:  # noqa: B027
        """Run after the last batch of an epoch, when it is scored."""

    @abstractmethod
    def total_rate(self) -> float:
        """Return the sum of the learning rates of all steps; asked for before the first one."""

    @abstractmethod
    def state(self) -> dict[str, Any] | None:
        """Return what changes beside the optimisers' tensors, as JSON has it; None if it cannot."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""


class OneCycle(Optimisation):
    """AdamW, its learning rate rising linearly to the peak and falling as a cosine to 0.

    With the settings' optimiser ``muon``, that trains the matrices, and AdamW the rest.
    """

    def __init__(
        self, model: nn.Module, settings: FineTune, steps: int, extra: Sequence[dict[str, Any]]
    ) -> None:
        self._settings, self._steps = settings, steps
        decay = settings.weight_decay
        for_muon = matrices(model) if settings.optimizer == "muon" else []
        keys = {id(parameter) for parameter in for_muon}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in keys]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": decay},
            # Biases and normalisation scales are not decayed.
            {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
            *extra,
        ]
        groups = [group for group in groups if group["params"]]
        self._optimizers: list[FusedAdamW | Muon] = []
        if for_muon:
            group = {"params": for_muon, "weight_decay": decay}
            self._optimizers.append(Muon([group], lr=settings.lr))
        if groups:
            self._optimizers.append(FusedAdamW(groups, lr=settings.lr))
        self._peaks = [(group, group["lr"]) for group in self._groups()]
        self._factor = _one_cycle(max(steps, 1))
        self._set_rates(done=0)

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        return self._optimizers

    @property
    def lr(self) -> float:
        return float(self._groups()[0]["lr"])

    def after_step(self) -> None:
        self._set_rates(done=self._done + 1)

    def total_rate(self) -> float:
        return total_rate(self._settings, self._steps)

    def state(self) -> dict[str, Any]:
        return {"steps": self._done}

    def load_state(self, state: dict[str, Any]) -> None:
        self._set_rates(done=state["steps"])

    def _set_rates(self, *, done: int) -> None:
        """Set the learning rates of the step after `done` ones."""
        self._done = done
        for group, peak in self._peaks:
            group["lr"] = peak * self._factor(done)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


def optimisation_for(
    task: Task,
    model: nn.Module,
    settings: FineTune,
    *,
    steps: int,
    regulariser: Regulariser | None = None,
) -> Optimisation:
    """Return what trains `model`: the task's own way, or one cycle.

    Parameters
    ----------
    steps
        How many there will be.
    regulariser
        Its own parameters are trained along.
    """
    extra = [] if regulariser is None else regulariser.trained()
    make: Callable[..., Optimisation] = getattr(task, "optimisation", OneCycle)
    return make(model, settings, steps, extra)


def total_rate(settings: FineTune, steps: int) -> float:
    """Return the sum of the learning rates of `steps` steps of one cycle."""
    factor = _one_cycle(max(steps, 1))
    return settings.lr * sum(factor(step) for step in range(steps))


def _one_cycle(total: int) -> Callable[[int], float]:
    rising = max(int(total * WARMUP), 1)

    def factor(step: int) -> float:
        if step < rising:
            return START + (1 - START) * step / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))

    return factor
