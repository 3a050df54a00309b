"""A candidate: a plan with its scores and its place in the lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autoprune.pruning.plan import Plan

DENSE = "dense"
"""Name of the dense model, the first parent."""
FINAL = "-final"
"""What a final-stage candidate appends to the name of the one it goes on from."""
SPARSE = "sparse-"
"""What the name of a sparsified parent's weights begins with."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a candidate is worth and what it costs."""

    valid: float
    """The task's score on the validation split."""
    params: int
    macs: int
    """Multiply-accumulates per sample in convolutions and linear layers."""
    size_bytes: int
    """Size of its weights on disk."""
    memory: int | None = None
    """Peak memory of the activations of one sample, in bytes."""
    latency: float | None = None
    """Seconds for a batch, where it was measured."""
    latency_spread: float | None = None
    """Interquartile range of the latency, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished plan: scored, its weights in the store under its name."""

    name: str
    trial: int
    plan: Plan
    score: Score
    parent: str
    epochs: int
    """Epochs of fine-tuning along the whole lineage, its own included."""
    curve: tuple[float, ...] = ()
    """Validation score after the cut (epoch 0) and after each epoch."""
    seed: int | None = None
    """What its training was seeded with."""
    sha256: str | None = None
    """Of its weights' file; None if an earlier version wrote it."""

    @property
    def widths(self) -> Mapping[str, int]:
        return self.plan.widths

    @property
    def params(self) -> int:
        return self.score.params

    @property
    def lineage_epochs(self) -> int:
        return self.epochs

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"plan": self.plan.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Candidate:
        return cls(
            name=value["name"],
            trial=value["trial"],
            plan=Plan.from_json(value["plan"]),
            score=Score(**value["score"]),
            parent=value["parent"],
            epochs=value["epochs"],
            curve=tuple(value["curve"]),
            seed=value.get("seed"),
            sha256=value.get("sha256"),
        )


def trial_name(number: int) -> str:
    """Return the name of a trial's candidate.

    >>> trial_name(7)
    't007'
    """
    return f"t{number:03d}"
