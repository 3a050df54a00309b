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

from autoprune.pruning.weights import load_sealed, save_sealed
from autoprune.training.optimise import Optimisation, Optimizer
from autoprune.training.regularise import Regulariser

SECONDS = 10.0
"""Least time between two checkpoints of a trial."""
WORTH = 50.0
"""How many times as long as writing a checkpoint took, the work between two of them lasts."""
FORMAT = 2
"""Of what a checkpoint holds; one of another format counts as none."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where training stands after an epoch: all that the next one depends on."""

    epoch: int
    tensors: Mapping[str, Tensor]
    """The model's state, the optimiser's, the regulariser's and the random generators'."""
    numbers: Mapping[str, Any]
    """What the optimisation keeps beside tensors, as JSON has it."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The moving parts of a training run."""

    model: nn.Module
    optimisation: Optimisation
    regulariser: Regulariser
    device: torch.device

    def state(self, epoch: int) -> TrainingState | None:
        """Return where training stands; None if a part of it cannot say where it does."""
        own, numbers = self.regulariser.state(), self.optimisation.state()
        if own is None or numbers is None:
            return None
        tensors = _prefixed("model", self.model.state_dict()) | _prefixed("regulariser", own)
        for name, (optimizer, parameter) in self._trained().items():
            moments = {n: v for n, v in optimizer.state.get(parameter, {}).items() if v is not None}
            if not all(isinstance(value, Tensor) for value in moments.values()):
                return None
            tensors |= _prefixed(f"optimizer/{name}", moments)
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        return TrainingState(epoch=epoch, tensors=tensors, numbers=numbers)

    def load(self, state: TrainingState) -> None:
        """Put every part where it stood."""
        self.model.load_state_dict(_part(state.tensors, "model"))
        self.regulariser.load_state(_part(state.tensors, "regulariser"))
        for key, (optimizer, parameter) in self._trained().items():
            moments = _part(state.tensors, f"optimizer/{key}")
            if moments:
                # Fused AdamW keeps its step count beside the parameter, too.
                optimizer.state[parameter] = {
                    name: moment.to(parameter.device) for name, moment in moments.items()
                }
        self.optimisation.load_state(dict(state.numbers))
        torch.set_rng_state(state.tensors["random/cpu"])
        if "random/cuda" in state.tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors["random/cuda"], self.device)

    def _trained(self) -> dict[str, tuple[Optimizer, Tensor]]:
        """Return what is trained, and by what, by a name that is the same in another process."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        found: dict[str, tuple[Optimizer, Tensor]] = {}
        own = 0
        for optimizer in self.optimisation.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = names.get(id(parameter))
                if name is None:
                    name, own = f"#{own}", own + 1
                found[name] = (optimizer, parameter)
        return found


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
    told = {"format": FORMAT, "epoch": state.epoch, "numbers": state.numbers, "about": about}
    save_sealed(file, state.tensors, json.dumps(told))


def read_checkpoint(file: Path) -> Saved | None:
    """Read a checkpoint; None if there is none, it is of another format, altered or cut short."""
    found = load_sealed(file)
    if found is None:
        return None
    tensors, text = found
    value = json.loads(text)
    if value.get("format") != FORMAT:
        return None
    state = TrainingState(epoch=value["epoch"], tensors=tensors, numbers=value["numbers"])
    return Saved(training=state, about=value["about"])
