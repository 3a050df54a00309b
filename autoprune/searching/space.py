"""The search space: what a study may vary, and how an Optuna trial becomes a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autoprune.errors import AutopruneError
from autoprune.pruning.criteria import get_criterion
from autoprune.pruning.plan import FineTune, Plan

SPARSITY = "sparsity/"
Range = float | tuple[float, float]
"""A fixed number, or (low, high) to search between."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a study searches. A single number is fixed, a pair is searched between its ends.

    Examples
    --------
    >>> Space(lr=1e-3, epochs=(5, 20)).epochs
    (5, 20)
    >>> Space(lr=(1e-2, 1e-3))
    Traceback (most recent call last):
    autoprune.errors.AutopruneError: `space.lr` must be a number or (low, high) with low < high, ...
    """

    criteria: tuple[str, ...] = ("taylor", "fisher", "gradient", "l1", "l2", "bn", "fpgm")
    """Criteria to choose from."""
    epochs: int | tuple[int, int] = 10
    lr: Range = (5e-4, 2e-2)
    """Peak learning rate, searched on a log scale."""
    batch_size: int | tuple[int, ...] = (32, 64, 128)
    """Batch sizes to choose from."""
    weight_decay: Range = (1e-5, 1e-1)
    """Searched on a log scale."""
    distill_weight: Range = (0.0, 1.0)
    temperature: Range = (1.0, 8.0)
    """Searched on a log scale."""
    dropout: Range | None = (0.0, 0.3)
    """Rate for the network's dropout layers, if it has any; None leaves them as they are."""
    max_sparsity: float = 1.0
    """No group loses a larger share of its channels. At least one channel always stays."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list) or f.name == "criteria":
                object.__setattr__(self, f.name, tuple(value))
        for name in self.criteria:
            get_criterion(name)
        if not self.criteria:
            raise AutopruneError("`space.criteria` must name at least one criterion, but is empty.")
        for f in fields(self):
            if f.name not in ("criteria", "batch_size"):
                _check_range(f.name, getattr(self, f.name))
        whole = all(type(size) is int and size >= 1 for size in self.batch_sizes)
        if not (whole and self.batch_sizes):
            raise AutopruneError(
                f"`space.batch_size` must be one or more whole numbers of at least 1, "
                f"but is {self.batch_size!r}."
            )
        self._check_limits()

    def _check_limits(self) -> None:
        rules = {
            "epochs": (1, math.inf),
            "lr": (1e-12, math.inf),
            "weight_decay": (0, math.inf),
            "distill_weight": (0, 1),
            "temperature": (1e-3, math.inf),
            "dropout": (0, 0.95),
            "max_sparsity": (1e-3, 1),
        }
        for name, (low, high) in rules.items():
            value = getattr(self, name)
            ends = value if isinstance(value, tuple) else (value,)
            if value is not None and not all(low <= end <= high for end in ends):
                raise AutopruneError(
                    f"`space.{name}` must lie between {low:g} and {high:g}, but is {value}."
                )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self.batch_size if isinstance(self.batch_size, tuple) else (self.batch_size,)


_RANGE_RULE = "a number or (low, high) with low < high"
_RULES = {
    "epochs": "a whole number or (low, high) of whole numbers with low < high",
    "max_sparsity": "a number",
    "dropout": f"{_RANGE_RULE}, or None",
}


def _check_range(name: str, value: Any) -> None:
    ends = value if isinstance(value, tuple) else (value,)
    kinds = (int,) if name == "epochs" else (int, float)
    numbers = all(isinstance(e, kinds) and not isinstance(e, bool) for e in ends)
    ordered = not isinstance(value, tuple) or (len(value) == 2 and numbers and value[0] < value[1])
    if value is None and name == "dropout":
        return
    if name == "max_sparsity" and isinstance(value, tuple):
        ordered = False
    if not (numbers and ordered):
        raise AutopruneError(
            f"`space.{name}` must be {_RULES.get(name, _RANGE_RULE)}, but is {value!r}."
        )


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A study's space over one model's channel groups, as Optuna distributions.

    A trial's parameters alone give its plan: ``sparsity/<group>`` is the fraction of the dense
    group's channels that go, rounded to whole channels, at least one of which stays.
    """

    channels: Mapping[str, int]
    space: Space
    has_dropout: bool
    fixed_batch_size: int | None = None

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Return what is searched, in a fixed order."""
        found: dict[str, BaseDistribution] = {
            f"{SPARSITY}{name}": FloatDistribution(0.0, self._most(count))
            for name, count in self.channels.items()
        }
        found["criterion"] = CategoricalDistribution(self.space.criteria)
        if self.fixed_batch_size is None and len(self.space.batch_sizes) > 1:
            found["batch_size"] = CategoricalDistribution(self.space.batch_sizes)
        epochs = self.space.epochs
        if isinstance(epochs, tuple):
            found["epochs"] = IntDistribution(*epochs, log=True)
        for name, log in (
            ("lr", True),
            ("weight_decay", True),
            ("distill_weight", False),
            ("temperature", True),
            ("dropout", False),
        ):
            value = getattr(self.space, name)
            if isinstance(value, tuple) and (name != "dropout" or self.has_dropout):
                found[name] = FloatDistribution(value[0], value[1], log=log and value[0] > 0)
        return found

    def _most(self, channels: int) -> float:
        return min(self.space.max_sparsity, 1.0 - 1.0 / channels)

    def widths(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Return the width of each group that a trial's parameters ask for."""
        return {
            name: width_of(params[f"{SPARSITY}{name}"], count)
            for name, count in self.channels.items()
        }

    def minimum_widths(self) -> dict[str, int]:
        """Return the narrowest widths the space allows."""
        return {name: width_of(self._most(count), count) for name, count in self.channels.items()}

    def sparsities(self, widths: Mapping[str, int]) -> dict[str, float]:
        """Return the parameters that ask for `widths`."""
        return {
            f"{SPARSITY}{name}": min(1.0 - widths[name] / count, self._most(count))
            for name, count in self.channels.items()
        }

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """Return the plan that a trial's parameters describe."""

        def value(name: str) -> Any:
            return params[name] if name in params else getattr(self.space, name)

        dropout = value("dropout") if self.has_dropout else None
        return Plan(
            widths=self.widths(params),
            criterion=str(params["criterion"]),
            finetune=FineTune(
                epochs=int(value("epochs")),
                lr=float(value("lr")),
                batch_size=self._batch_size(params),
                weight_decay=float(value("weight_decay")),
                distill_weight=float(value("distill_weight")),
                temperature=float(value("temperature")),
                dropout=None if dropout is None else float(dropout),
            ),
        )

    def _batch_size(self, params: Mapping[str, Any]) -> int:
        if self.fixed_batch_size is not None:
            return self.fixed_batch_size
        return int(params.get("batch_size", self.space.batch_sizes[0]))


def width_of(sparsity: float, channels: int) -> int:
    """Return how many of `channels` stay at `sparsity`, at least one.

    >>> width_of(0.5, 64), width_of(1.0, 64), width_of(0.0, 64)
    (32, 1, 64)
    """
    return min(channels, max(1, round((1.0 - sparsity) * channels)))


def with_criteria(space: Space, criteria: Sequence[str]) -> Space:
    """Return `space` with other criteria."""
    values = {f.name: getattr(space, f.name) for f in fields(space)}
    return Space(**(values | {"criteria": tuple(criteria)}))
