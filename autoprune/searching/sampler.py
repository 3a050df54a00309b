"""Samplers: Optuna's own by name, and ours, which proposes better vectors in the same space."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import unknown
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.objectives import DEFAULT_COSTS
from autoprune.searching.pareto import pareto
from autoprune.searching.space import DROP, SPARSITY, SearchSpace

VALID, PARAMS = "valid", "params"
"""User attributes of a completed trial: its score and its size, whatever the objective. Other costs
that are objectives go by their own names."""

INTERRUPTED = "interrupted"
"""The `cause` of a trial that its user stopped."""

LARGEST = 0.7
"""The chain's first size, as a share of the dense parameters."""
SMALLEST = 1 / 256
"""Its last, unless the network cannot get that small."""
CHAIN_SHARE = 0.7
"""Share of the budget that the descending chain takes."""
DROP_SHARE = 0.25
"""Share of the new sizes after it that drop a block, too, where blocks may be dropped."""
LAMP_SHARE = 0.2
"""Share of the new sizes after it that are spread by LAMP scores."""


@dataclass(frozen=True, kw_only=True)
class SamplerContext:
    """What a sampler may need to know."""

    space: SearchSpace
    allocator: Allocator
    budget: int
    seed: int
    trials: int = 0
    """Trials that are there already, when a search is gone on with."""
    budget_epochs: int | None = None
    """Epochs that the search may train in all, its final stage included; None bounds nothing."""
    higher_is_better: bool = True
    costs: tuple[str, ...] = DEFAULT_COSTS
    """What the score is traded against, by the objectives' names."""

    @property
    def own_seed(self) -> int:
        """A seed for samplers that draw from one stream: not the same stream again on resuming."""
        return self.seed + self.trials


def make_sampler(name: str, context: SamplerContext) -> BaseSampler:
    """Build a sampler by name.

    Raises
    ------
    AutopruneError
        If there is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](context)


def check_sampler(name: str) -> None:
    """Raise `AutopruneError` if there is no sampler called `name`."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)


class PruningSampler(BaseSampler):
    """Proposes whole plans: a descending chain of sizes first, then what the front lacks.

    The chain covers the whole range of sizes with one allocation, so that each of its models can
    be cut from the one before and inherit its training. What is left of the budget goes to the
    widest gaps of the front, with other allocations and recipes, and to training front members on.

    A proposal depends on the seed, the trial's number and the earlier trials, on nothing else.
    """

    def __init__(self, context: SamplerContext) -> None:
        self._context = context
        self._fallback = RandomSampler(seed=context.seed)
        self._chain = _chain_of(context)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._context.space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        rng = np.random.default_rng([self._context.seed, trial.number])
        cost = self._context.costs[trial.number % len(self._context.costs)]
        front = self._front(study, cost)
        position = _position(study, trial)
        if position < len(self._chain) or not front:
            widths = self._chain[position % len(self._chain)]
            recipe = self._recipe(rng, search_space, around=None, spread=0.05, explore=0.2)
        else:
            widths, near = self._refine(rng, front, cost)
            known = near if rng.random() < 0.5 else None
            recipe = self._recipe(rng, search_space, around=known, spread=0.15, explore=0.5)
        return {**self._context.space.sparsities(widths), **recipe}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def _front(self, study: optuna.Study, cost: str) -> list[FrozenTrial]:
        """Return the trials that no other dominates in score and `cost`, by ascending cost."""
        sign = 1.0 if self._context.higher_is_better else -1.0
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return pareto(
            [t for t in done if VALID in t.user_attrs and cost in t.user_attrs],
            score=lambda t: sign * t.user_attrs[VALID],
            costs=lambda t: [t.user_attrs[cost]],
        )

    def _refine(
        self, rng: np.random.Generator, front: Sequence[FrozenTrial], cost: str
    ) -> tuple[dict[str, int], FrozenTrial]:
        """Propose widths: a front member trained on, or a new size inside a gap of the front.

        With several costs, each has its turn: the gap is one of score over that cost, and the size
        lies between those of the models on both sides of it.
        """
        if len(front) < 2 or rng.random() < 0.3:
            chosen = front[int(rng.integers(len(front)))]
            return self._context.space.widths(chosen.params), chosen
        sizes = np.log([t.user_attrs[PARAMS] for t in front])
        costs = np.log([t.user_attrs[cost] for t in front])
        scores = np.array([t.user_attrs[VALID] for t in front])
        # What a gap could still gain: as much of the log-cost as it is wide, as much score as it
        # is high; a little of the width alone, for gaps between equals.
        rise = np.abs(np.diff(scores))
        gain = np.diff(costs) * (rise + 0.05 * max(float(rise.max()), 1e-9))
        gap = int(rng.choice(len(gain), p=gain / gain.sum()))
        parent = front[gap + 1]
        target = int(np.exp(rng.uniform(*sorted(sizes[gap : gap + 2]))))
        shape = Shape(eta=rng.uniform(0.2, 0.9), beta=rng.normal(0, 0.3), kappa=rng.normal(0, 0.3))
        allocator = self._context.allocator
        ceiling = self._context.space.widths(parent.params)
        left = [block for block in self._context.space.blocks if ceiling[block]]
        if left and rng.random() < DROP_SHARE:
            ceiling[left[int(rng.integers(len(left)))]] = 0
        if allocator.knows_lamp and rng.random() < LAMP_SHARE:
            return allocator.lamp_widths(target, at_most=ceiling), parent
        return allocator.widths(target, shape, at_most=ceiling), parent

    def _recipe(
        self,
        rng: np.random.Generator,
        search_space: Mapping[str, BaseDistribution],
        *,
        around: FrozenTrial | None,
        spread: float,
        explore: float,
    ) -> dict[str, Any]:
        """Draw everything but the sparsities near a known recipe, or near the space's middle."""
        recipe: dict[str, Any] = {}
        for name, distribution in search_space.items():
            if name.startswith((SPARSITY, DROP)):
                continue
            if isinstance(distribution, CategoricalDistribution):
                choices = distribution.choices
                usual = choices[0] if name == "criterion" else choices[len(choices) // 2]
                if around is not None:
                    usual = around.params.get(name, usual)
                any_choice = choices[int(rng.integers(len(choices)))]
                recipe[name] = any_choice if rng.random() < explore else usual
            elif isinstance(distribution, (FloatDistribution, IntDistribution)):
                known = None if around is None else around.params.get(name)
                recipe[name] = _near(rng, distribution, known, spread)
        return recipe


def _position(study: optuna.Study, trial: FrozenTrial) -> int:
    """Count the earlier trials that were not interrupted: such a one's size is tried again."""
    others = study.get_trials(deepcopy=False)
    return sum(t.number < trial.number and t.user_attrs.get("cause") != INTERRUPTED for t in others)


def _chain_of(context: SamplerContext) -> list[dict[str, int]]:
    """Return the descending chain's widths, each once."""
    allocator = context.allocator
    dense = allocator.dense_params
    least = max(allocator.least_params, dense * SMALLEST)
    count = max(min(context.budget, 4), round(CHAIN_SHARE * context.budget))
    largest = max(dense * LARGEST, least)
    chain: list[dict[str, int]] = []
    for size in np.geomspace(largest, least, count):
        widths = allocator.widths(round(float(size)), Shape())
        if widths not in chain:
            chain.append(widths)
    return chain


def _near(
    rng: np.random.Generator,
    distribution: FloatDistribution | IntDistribution,
    known: float | None,
    spread: float,
) -> float | int:
    """Draw from a normal around `known` (the middle without it), `spread` as share of the range."""
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high = np.log(low), np.log(high)
        known = None if known is None else float(np.log(known))
    middle = (low + high) / 2 if known is None else known
    value = float(np.clip(rng.normal(middle, spread * (high - low)), low, high))
    if distribution.log:
        value = float(np.exp(value))
    value = float(np.clip(value, distribution.low, distribution.high))
    return round(value) if isinstance(distribution, IntDistribution) else value


SAMPLERS: dict[str, Callable[[SamplerContext], BaseSampler]] = {
    "pruning": PruningSampler,
    "tpe": lambda c: TPESampler(seed=c.own_seed, multivariate=True, constant_liar=True),
    # Optuna's default population of 50 would spend a usual budget on its first generation.
    "nsga2": lambda c: NSGAIISampler(seed=c.own_seed, population_size=10),
    "gp": lambda c: GPSampler(seed=c.own_seed),
    "random": lambda c: RandomSampler(seed=c.own_seed),
}
