"""The search space: what a study may vary, and how an Optuna trial becomes a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autoprune.errors import AutopruneError, is_number, unknown
from autoprune.pruning.cost import Widths
from autoprune.pruning.criteria import get_criterion
from autoprune.pruning.groups import module_of
from autoprune.pruning.plan import (
    GRANULARITIES,
    OPTIMIZERS,
    FineTune,
    Granularity,
    OptimizerName,
    Plan,
    Sparsify,
)
from autoprune.searching.widths import allowed_widths, nearest_width
from autoprune.training.sparsify import SPARSIFIERS

SPARSITY, DROP = "sparsity/", "drop/"
NO_SPARSIFY = "none"
WEIGHT_COUNTS = 512
"""How many sizes a tensor may have whose single weights are pruned."""
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
    """Peak learning rate, searched on a log scale; of a wide range the default sampler tries some
    first."""
    optimizer: OptimizerName | tuple[OptimizerName, ...] | None = None
    """Optimisers to choose from: ``adamw``, and ``muon`` for linear layers and convolutions. None
    is Muon, but AdamW where Muon's own arithmetic would be more than half of training's: where
    layers are wide and each weight is used at few positions."""
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
    round_to: int = 1
    """Widths are multiples of it, or dense: 8 suits most hardware. A narrower group keeps all."""
    min_width: int | Mapping[str, int] = 1
    """Fewest channels of a group: of every one (a narrower one keeps all), or by name."""
    sparsify: tuple[str, ...] = (NO_SPARSIFY,)
    """Sparsifiers to choose from; ``none`` cuts the parent as it is."""
    sparsify_epochs: int | tuple[int, int] = 3
    sparsify_strength: Range = 1.0
    """Factor on a sparsifier's usual strength, searched on a log scale."""
    steps: int | tuple[int, ...] = 1
    """Numbers of pruning steps to choose from, with training between them."""
    reconstruct: bool | tuple[bool, ...] = False
    """Whether readers of pruned channels are refitted by least squares; both may be tried."""
    depth: bool | None = None
    """Whether residual blocks may be dropped whole; None says yes where nothing speaks against
    it."""
    granularity: Granularity = "channel"
    """``channel`` makes tensors smaller; ``weight`` and ``2:4`` set single weights to zero."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list):
                object.__setattr__(self, f.name, tuple(value))
            elif f.name in ("criteria", "sparsify"):
                object.__setattr__(self, f.name, names_in(value))
            elif isinstance(value, Mapping):
                object.__setattr__(self, f.name, dict(value))
        for name in self.criteria:
            get_criterion(name)
        for name in self.sparsify:
            if name != NO_SPARSIFY and name not in SPARSIFIERS:
                raise unknown("sparsifier", name, [NO_SPARSIFY, *SPARSIFIERS])
        for name in () if self.optimizer is None else choices(self.optimizer):
            if name not in OPTIMIZERS:
                raise unknown("optimizer", name, OPTIMIZERS)
        for name in _RANGES:
            _check_range(name, getattr(self, name))
        for name, what in _NAMED.items():
            if getattr(self, name) == ():
                raise AutopruneError(f"`space.{name}` must name at least one {what}, but is empty.")
        for name in ("batch_size", "steps"):
            values = choices(getattr(self, name))
            if not values or not all(type(v) is int and v >= 1 for v in values):
                raise AutopruneError(
                    f"`space.{name}` must be one or more whole numbers of at least 1, "
                    f"but is {getattr(self, name)!r}."
                )
        if not isinstance(self.depth, bool | None):
            raise AutopruneError(
                f"`space.depth` must be True, False or None, but is {self.depth!r}."
            )
        if not all(isinstance(v, bool) for v in choices(self.reconstruct)):
            raise AutopruneError(
                f"`space.reconstruct` must be True, False or both, but is {self.reconstruct!r}."
            )
        if self.granularity not in GRANULARITIES:
            raise unknown("granularity", self.granularity, GRANULARITIES)
        if self.granularity != "channel":
            self._check_single_weights()
        self._check_limits()

    def _check_single_weights(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        channels_only = ["sparsify", "reconstruct", "round_to", "min_width", "depth"]
        if self.granularity == "2:4":
            channels_only += ["steps", "max_sparsity"]
        for name in channels_only:
            if getattr(self, name) != defaults[name]:
                raise AutopruneError(
                    f"`space.{name}` must be left out with granularity {self.granularity!r}, "
                    f"but is {getattr(self, name)!r}."
                )

    def _check_limits(self) -> None:
        rules = {
            "epochs": (1, math.inf),
            "lr": (1e-12, math.inf),
            "weight_decay": (0, math.inf),
            "distill_weight": (0, 1),
            "temperature": (1e-3, math.inf),
            "dropout": (0, 0.95),
            "max_sparsity": (1e-3, 1),
            "round_to": (1, math.inf),
            "sparsify_epochs": (1, math.inf),
            "sparsify_strength": (1e-6, 1e6),
        }
        for name, (low, high) in rules.items():
            value = getattr(self, name)
            if value is not None and not all(is_number(v, low, high) for v in choices(value)):
                rule = f"lie between {low:g} and {high:g}"
                if high == math.inf:
                    rule = f"be finite and at least {low:g}"
                raise AutopruneError(f"`space.{name}` must {rule}, but is {value}.")
        widths = self.min_width
        for width in widths.values() if isinstance(widths, Mapping) else (widths,):
            if type(width) is not int or width < 1:
                raise AutopruneError(
                    f"`space.min_width` must be whole numbers of at least 1, but is {widths!r}."
                )


_NAMED = {"criteria": "criterion", "optimizer": "optimizer", "sparsify": "sparsifier"}
"""What must be named at least once, and what one of them is called."""


def names_in(value: Any) -> tuple[Any, ...]:
    """Return the names of a collection, or the only one."""
    alone = isinstance(value, str) or not isinstance(value, Iterable)
    return (value,) if alone else tuple(value)


def choices(value: Any) -> tuple[Any, ...]:
    """Return what a setting may be: itself, or each of a tuple."""
    return value if isinstance(value, tuple) else (value,)


_WHOLE = "a whole number or (low, high) of whole numbers with low < high"
_RANGES = {
    "epochs": _WHOLE,
    "sparsify_epochs": _WHOLE,
    "lr": "a number or (low, high) with low < high",
    "weight_decay": "a number or (low, high) with low < high",
    "distill_weight": "a number or (low, high) with low < high",
    "temperature": "a number or (low, high) with low < high",
    "sparsify_strength": "a number or (low, high) with low < high",
    "dropout": "a number or (low, high) with low < high, or None",
    "max_sparsity": "a number",
    "round_to": "a whole number",
}
"""The numbers of a space, with what each may be."""


def _check_range(name: str, value: Any) -> None:
    if value is None and name == "dropout":
        return
    rule = _RANGES[name]
    kinds = (int,) if "whole" in rule else (int, float)
    ends = choices(value)
    numbers = all(isinstance(e, kinds) and not isinstance(e, bool) for e in ends)
    pair = isinstance(value, tuple)
    ordered = not pair or ("low" in rule and len(ends) == 2 and numbers and ends[0] < ends[1])
    if not (numbers and ordered):
        raise AutopruneError(f"`space.{name}` must be {rule}, but is {value!r}.")


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A study's space over one model's channel groups, as Optuna distributions.

    A trial's parameters alone give its plan: ``sparsity/<group>`` is the fraction of the dense
    group's channels that go, rounded to the nearest width that the space allows.

    Raises
    ------
    AutopruneError
        If `min_width` names a group that there is not, or asks for more channels than it has.
    """

    channels: Mapping[str, int]
    """Dense widths of the channel groups."""
    space: Space
    has_dropout: bool
    fixed_batch_size: int | None = None
    blocks: tuple[str, ...] = ()
    """Residual blocks that may be dropped whole."""
    usual_optimizer: OptimizerName = "adamw"
    """What trains where the space names no optimiser."""

    @property
    def optimizer(self) -> OptimizerName | tuple[OptimizerName, ...]:
        """Return the optimisers to choose from, or the only one."""
        return self.space.optimizer or self.usual_optimizer

    @property
    def dense_widths(self) -> dict[str, int]:
        """Channels by group, and 1 for each block."""
        return {**self.channels, **dict.fromkeys(self.blocks, 1)}

    def __post_init__(self) -> None:
        by_name = self.space.min_width
        for name, width in by_name.items() if isinstance(by_name, Mapping) else ():
            if name not in self.channels:
                raise AutopruneError(f"`space.min_width`: {unknown('group', name, self.channels)}")
            if width > self.channels[name]:
                raise AutopruneError(
                    f"`space.min_width` must be at most a group's channels, but {name!r} has "
                    f"{self.channels[name]} and {width} are asked for. Lower it, or leave it out."
                )

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Return what is searched, in a fixed order."""
        found: dict[str, BaseDistribution] = {
            f"{SPARSITY}{name}": FloatDistribution(0.0, self._most(name)) for name in self.channels
        }
        found |= {
            f"{DROP}{module_of(block)}": CategoricalDistribution((False, True))
            for block in self.blocks
        }
        found["criterion"] = CategoricalDistribution(self.space.criteria)
        for name in ("optimizer", "batch_size", "sparsify", "steps", "reconstruct"):
            options = choices(getattr(self.space, name))
            if len(options) > 1 and self._applies(name):
                found[name] = CategoricalDistribution(options)
        for name in ("epochs", "sparsify_epochs"):
            value = getattr(self.space, name)
            if isinstance(value, tuple) and self._applies(name):
                found[name] = IntDistribution(value[0], value[1], log=True)
        for name, log in (
            ("lr", True),
            ("weight_decay", True),
            ("distill_weight", False),
            ("temperature", True),
            ("dropout", False),
            ("sparsify_strength", True),
        ):
            value = getattr(self.space, name)
            if isinstance(value, tuple) and self._applies(name):
                found[name] = FloatDistribution(value[0], value[1], log=log and value[0] > 0)
        return found

    def _applies(self, name: str) -> bool:
        """Return whether a setting makes a difference for this model and study."""
        if name == "dropout":
            return self.has_dropout
        if name == "batch_size":
            return self.fixed_batch_size is None
        if name.startswith("sparsify_"):
            return self.space.sparsify != (NO_SPARSIFY,)
        return True

    @cached_property
    def allowed(self) -> dict[str, Widths]:
        """The widths that each group may have, ascending."""
        if self.space.granularity == "2:4":
            return {n: np.array([count // 2, count]) for n, count in self.channels.items()}
        if self.space.granularity == "weight":
            return {n: self._weight_counts(count) for n, count in self.channels.items()}
        least = self.space.min_width
        return {
            name: allowed_widths(
                count,
                lowest=max(
                    least.get(name, 1) if isinstance(least, Mapping) else least,
                    round((1.0 - self.space.max_sparsity) * count),
                ),
                round_to=self.space.round_to,
            )
            for name, count in self.channels.items()
        }

    def _weight_counts(self, count: int) -> Widths:
        """Return how many of `count` weights may stay: a grid, as there may be millions."""
        least = max(round((1.0 - self.space.max_sparsity) * count), 1)
        grid = np.rint(np.geomspace(least, count, WEIGHT_COUNTS)).astype(np.int64)
        return np.unique(grid)

    def _most(self, name: str) -> float:
        return min(self.space.max_sparsity, 1.0 - int(self.allowed[name][0]) / self.channels[name])

    def widths(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Return the width of each group that a trial's parameters ask for."""
        return {
            name: nearest_width((1.0 - params[f"{SPARSITY}{name}"]) * count, self.allowed[name])
            for name, count in self.channels.items()
        } | {block: int(not params[f"{DROP}{module_of(block)}"]) for block in self.blocks}

    def minimum_widths(self) -> dict[str, int]:
        """Return the narrowest widths the space allows, no block dropped."""
        narrowest = {name: int(allowed[0]) for name, allowed in self.allowed.items()}
        return narrowest | dict.fromkeys(self.blocks, 1)

    def sparsities(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """Return the parameters that ask for `widths`."""
        dropped: dict[str, Any] = {
            f"{DROP}{module_of(block)}": not widths[block] for block in self.blocks
        }
        return dropped | {
            f"{SPARSITY}{name}": min(1.0 - widths[name] / count, self._most(name))
            for name, count in self.channels.items()
        }

    def params(self, plan: Plan) -> dict[str, Any]:
        """Return the parameters of the trial that `plan` came from.

        A plan that was shortened may train for less than the space allows: then they ask for the
        least that it does.
        """
        sparsify = plan.sparsify
        # Without a sparsifier its settings change nothing; Optuna wants a value all the same.
        idle_epochs = choices(self.space.sparsify_epochs)[0]
        idle_strength = choices(self.space.sparsify_strength)[0]
        known = {
            **self.sparsities(plan.widths),
            **asdict(plan.finetune),
            "criterion": plan.criterion,
            "steps": plan.steps,
            "reconstruct": plan.reconstruct,
            "sparsify": sparsify.method if sparsify else NO_SPARSIFY,
            "sparsify_epochs": sparsify.epochs if sparsify else idle_epochs,
            "sparsify_strength": sparsify.strength if sparsify else idle_strength,
        }
        return {name: _inside(d, known[name]) for name, d in self.distributions.items()}

    def outside(self, params: Mapping[str, Any]) -> str | None:
        """Say which of a trial's parameters lies outside the space; None if none does."""
        for name, distribution in self.distributions.items():
            value = params[name]
            if not _allows(distribution, value):
                return f"{name} = {value!r}, which is not in {distribution}"
        return None

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """Return the plan that a trial's parameters describe."""

        def value(name: str) -> Any:
            return params[name] if name in params else choices(getattr(self.space, name))[0]

        dropout = value("dropout") if self.has_dropout else None
        method = str(value("sparsify"))
        return Plan(
            widths=self.widths(params),
            criterion=str(params["criterion"]),
            finetune=FineTune(
                epochs=int(value("epochs")),
                lr=float(value("lr")),
                optimizer=params.get("optimizer", choices(self.optimizer)[0]),
                batch_size=self.fixed_batch_size or int(value("batch_size")),
                weight_decay=float(value("weight_decay")),
                distill_weight=float(value("distill_weight")),
                temperature=float(value("temperature")),
                dropout=None if dropout is None else float(dropout),
            ),
            sparsify=None
            if method == NO_SPARSIFY
            else Sparsify(
                method=method,
                epochs=int(value("sparsify_epochs")),
                strength=float(value("sparsify_strength")),
            ),
            steps=int(value("steps")),
            reconstruct=bool(value("reconstruct")),
            granularity=self.space.granularity,
        )


def _allows(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return bool(distribution.low <= value <= distribution.high)


def _inside(distribution: BaseDistribution, value: Any) -> Any:
    """Return what a distribution allows that is nearest to `value`."""
    if isinstance(distribution, CategoricalDistribution):
        return value if value in distribution.choices else distribution.choices[0]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return min(max(value, distribution.low), distribution.high)


def with_criteria(space: Space, criteria: Sequence[str]) -> Space:
    """Return `space` with other criteria."""
    return _with(space, criteria=criteria)


def with_sparsify(space: Space, sparsify: Sequence[str]) -> Space:
    """Return `space` with other sparsifiers to choose from."""
    return _with(space, sparsify=sparsify)


def _with(space: Space, **changes: Any) -> Space:
    return Space(**({f.name: getattr(space, f.name) for f in fields(space)} | changes))


def middle_recipe(space: Space, *, fixed_batch_size: int | None = None) -> FineTune:
    """Return a way to train in the middle of all that the space allows, for one epoch.

    Dropout is left as the model has it.
    """
    sizes = choices(space.batch_size)
    return FineTune(
        epochs=1,
        lr=_middle(space.lr, log=True),
        batch_size=fixed_batch_size or sizes[len(sizes) // 2],
        weight_decay=_middle(space.weight_decay, log=True),
        distill_weight=_middle(space.distill_weight, log=False),
        temperature=_middle(space.temperature, log=True),
    )


def _middle(value: Range, *, log: bool) -> float:
    low, high = choices(value)[0], choices(value)[-1]
    if log and low > 0:
        return float(math.sqrt(low * high))
    return float((low + high) / 2)
