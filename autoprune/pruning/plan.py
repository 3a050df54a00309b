"""The plan: what a candidate is, as a frozen value that JSON can carry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from autoprune.errors import (
    AutopruneError,
    Rules,
    check_values,
    first_line,
    is_number,
    is_whole,
    unknown,
)
from autoprune.pruning.groups import Grouping

OptimizerName = Literal["adamw", "muon"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
Granularity = Literal["channel", "weight", "2:4"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """How a cut model is trained."""

    epochs: int
    lr: float
    """Peak learning rate of the one-cycle schedule."""
    batch_size: int = 64
    weight_decay: float = 1e-3
    distill_weight: float = 0.0
    """Share of the loss that asks for the dense model's outputs, in [0, 1]."""
    temperature: float = 2.0
    dropout: float | None = None
    """Rate given to every dropout layer; None leaves them as they are."""
    optimizer: OptimizerName = "adamw"
    """``adamw``, or ``muon`` for the weights of linear layers and convolutions."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        check_values(self, FINETUNE_RULES, prefix="FineTune.")


FINETUNE_RULES: Rules = {
    "epochs": (lambda v: is_whole(v, 0), "a whole number of at least 0"),
    "lr": (lambda v: is_number(v, 0), "a finite number of at least 0"),
    "batch_size": (lambda v: is_whole(v, 1), "a whole number of at least 1"),
    "weight_decay": (lambda v: is_number(v, 0), "a finite number of at least 0"),
    "distill_weight": (lambda v: is_number(v, 0, 1), "a number between 0 and 1"),
    "temperature": (lambda v: is_number(v, 1e-3), "a finite number of at least 0.001"),
    "dropout": (lambda v: v is None or is_number(v, 0, 1), "None or a number between 0 and 1"),
}


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """How a parent is trained to need less, before it is cut."""

    method: str
    """Name of a sparsifier."""
    epochs: int
    strength: float = 1.0
    """Factor on the method's own usual strength."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Widths per group, ways to get there and fine-tuning; once scored, also the kept channels.

    A plan alone reproduces the model's shape.
    """

    widths: Mapping[str, int]
    criterion: str
    finetune: FineTune
    kept: Mapping[str, tuple[int, ...]] | None = None
    """Ascending indices into the dense group's channels."""
    sparsify: Sparsify | None = None
    steps: int = 1
    """In how many steps the widths are reached, with training between them."""
    reconstruct: bool = False
    """Whether the layers that read pruned channels are refitted by least squares after the cut."""
    granularity: Granularity = "channel"

    def with_kept(self, kept: Mapping[str, tuple[int, ...]]) -> Plan:
        return replace(self, kept=dict(kept), widths={n: len(k) for n, k in kept.items()})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Rebuild a plan.

        Raises
        ------
        AutopruneError
            If the value is not a plan.
        """
        try:
            kept, sparsify = value["kept"], value["sparsify"]
            if value["granularity"] not in GRANULARITIES:
                raise ValueError(f"granularity {value['granularity']!r}")
            return cls(
                widths={str(n): int(w) for n, w in value["widths"].items()},
                criterion=str(value["criterion"]),
                finetune=FineTune(**value["finetune"]),
                kept=kept and {str(n): tuple(int(i) for i in k) for n, k in kept.items()},
                sparsify=sparsify and Sparsify(**sparsify),
                steps=int(value["steps"]),
                reconstruct=bool(value["reconstruct"]),
                granularity=value["granularity"],
            )
        except (
            AutopruneError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:
            raise AutopruneError(
                f"A plan must have widths, criterion, finetune and kept, but reading it gave "
                f"{first_line(error)}. Was the file altered?"
            ) from error


def fingerprint(grouping: Grouping) -> str:
    """Return a short digest of a dense model's shapes and groups."""
    value = [sorted((n, list(s)) for n, s in grouping.shapes.items()), grouping.channels]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
