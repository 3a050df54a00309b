"""Where a model's training stands after an epoch, and how it is kept on disk: tensors and JSON.

A checkpoint costs little and is never late: it is written only where the time since the last one
is worth it, whole, with a checksum; one that cannot be read counts as none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from autoprune.pruning.weights import load_sealed, save_sealed
from autoprune.training.regularise import Regulariser

SECONDS = 10.0
"""Least time between two checkpoints of a trial."""
WORTH = 50.0
"""How many times as long as writing a checkpoint took, the work between two of them lasts."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where training stands after an epoch: all that the next one depends on."""

    epoch: int
    tensors: Mapping[str, Tensor]
    """The model's state, the optimiser's, the regulariser's and the random generators'."""
    numbers: Mapping[str, Any]
    """The schedule's state and the learning rates, as JSON has them."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The moving parts of a training run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    regulariser: Regulariser
    device: torch.device

    def state(self, epoch: int) -> TrainingState | None:
        """Return where training stands; None if the regulariser cannot say where it does."""
        own = self.regulariser.state()
        if own is None:
            return None
        tensors = _prefixed("model", self.model.state_dict()) | _prefixed("regulariser", own)
        for name, parameter in self._trained().items():
            tensors |= _prefixed(f"optimizer/{name}", self.optimizer.state.get(parameter, {}))
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        numbers = {
            "schedule": {n: v for n, v in self.schedule.state_dict().items() if n != "lr_lambdas"},
            "rates": [group["lr"] for group in self.optimizer.param_groups],
        }
        return TrainingState(epoch=epoch, tensors=tensors, numbers=numbers)

    def load(self, state: TrainingState) -> None:
        """Put every part where it stood."""
        self.model.load_state_dict(_part(state.tensors, "model"))
        self.regulariser.load_state(_part(state.tensors, "regulariser"))
        for key, parameter in self._trained().items():
            moments = _part(state.tensors, f"optimizer/{key}")
            if moments:
                # Fused AdamW keeps its step count beside the parameter, too.
                self.optimizer.state[parameter] = {
                    name: moment.to(parameter.device) for name, moment in moments.items()
                }
        self.schedule.load_state_dict({**state.numbers["schedule"], "lr_lambdas": [None]})
        for group, rate in zip(self.optimizer.param_groups, state.numbers["rates"], strict=True):
            group["lr"] = rate
        torch.set_rng_state(state.tensors["random/cpu"])
        if "random/cuda" in state.tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors["random/cuda"], self.device)

    def _trained(self) -> dict[str, Tensor]:
        """Return what the optimiser trains, by a name that is the same in another process."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        own = [p for g in self.optimizer.param_groups for p in g["params"] if id(p) not in names]
        extra = {id(p): f"#{number}" for number, p in enumerate(own)}
        return {(names | extra)[id(p)]: p for g in self.optimizer.param_groups for p in g["params"]}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


# --- on disk ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint as it was read: where training stood, and what its job said of it."""

    training: TrainingState
    about: Mapping[str, Any]

    @property
    def model(self) -> dict[str, Tensor]:
        """The model's state."""
        return _part(self.training.tensors, "model")


@dataclass(kw_only=True)
class Keeper:
    """Writes a job's checkpoints to a file, as often as is worth it.

    Parameters
    ----------
    file
        None keeps nothing.
    seconds
        Least time between two.
    """

    file: Path | None
    seconds: float = SECONDS
    _due: float = field(init=False)

    def __post_init__(self) -> None:
        self._due = time.monotonic() + self.seconds

    def load(self) -> Saved | None:
        """Return what was kept; None if there is nothing, or nothing that can be trusted."""
        return None if self.file is None else read_checkpoint(self.file)

    def offer(
        self, state: Callable[[], TrainingState | None], about: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Write a checkpoint if one is due."""
        started = time.monotonic()
        if self.file is None or started < self._due:
            return
        found = state()
        if found is not None:
            write_checkpoint(self.file, found, about())
        now = time.monotonic()
        self._due = now + max(self.seconds, WORTH * (now - started))


def write_checkpoint(file: Path, state: TrainingState, about: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole, as one safetensors file that carries its own checksum."""
    told = {"epoch": state.epoch, "numbers": state.numbers, "about": about}
    save_sealed(file, state.tensors, json.dumps(told))


def read_checkpoint(file: Path) -> Saved | None:
    """Read a checkpoint; None if there is none, or it was altered or cut short."""
    found = load_sealed(file)
    if found is None:
        return None
    tensors, text = found
    value = json.loads(text)
    state = TrainingState(epoch=value["epoch"], tensors=tensors, numbers=value["numbers"])
    return Saved(training=state, about=value["about"])
