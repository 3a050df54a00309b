"""Samplers: Optuna's own by name, and ours, which proposes better vectors in the same space."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import unknown
from autoprune.searching.allocation import Allocator
from autoprune.searching.attributes import PARAMS
from autoprune.searching.capped import CappedGPSampler, CappedTPESampler
from autoprune.searching.depth import Depth
from autoprune.searching.descents import Opening
from autoprune.searching.forecast import Forecast
from autoprune.searching.history import Finished, History, front, places_of
from autoprune.searching.moves import Moves, Proposal
from autoprune.searching.objectives import DEFAULT_COSTS
from autoprune.searching.recipes import EPOCHS, LR, Recipes
from autoprune.searching.space import SearchSpace
from autoprune.searching.strategy import Strategy
from autoprune.searching.surrogate import Staircase, staircase
from autoprune.training.device import SEEDS

LEAST_HISTORY = 8
"""Fewest finished trials that a surrogate is built on."""
OPENING_SPREAD, OPENING_EXPLORE = 0.08, 0.2
"""How far the descents' recipes go from the usual ones, so that there is something to learn."""
NOISE_SHARE = 0.5
"""Of a score's standard error, what differs between models that are scored on the same samples."""
FLOOR_SHARE = 0.25
"""How far below the worst score of a front its hypervolume begins, as a share of its spread."""


@dataclass(frozen=True, kw_only=True)
class SamplerContext:
    """What a sampler may need to know."""

    space: SearchSpace
    allocator: Allocator
    budget: int
    """Trials, as far as that can be said."""
    seed: int
    budget_epochs: int | None = None
    """Epochs that the search may train in all, the final stage's included; None for any number."""
    trials: int = 0
    """Trials that are there already, when a search is gone on with."""
    higher_is_better: bool = True
    costs: tuple[str, ...] = DEFAULT_COSTS
    """What the score is traded against, by the objectives' names."""
    inherit: bool = True
    """Whether trials are cut from finished candidates; else all are from the dense model."""
    strategy: Strategy = field(default_factory=Strategy)
    depth: Depth | None = None
    """Which blocks models of a size do without; None for none."""
    noise: float = 0.0
    """Standard error of a score."""

    @property
    def own_seed(self) -> int:
        """A seed for samplers that draw from one stream: not the same stream again on resuming."""
        return (self.seed + self.trials) % SEEDS


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
    """Proposes whole plans: descents over all sizes first, then what the front lacks most.

    Where the learning rate may be many times the lowest one, a few models of one size try it first.
    A few scouts give a coarse front early. The chain then covers the range in small steps with one
    allocation, so that each of its models can be cut from the one before and inherit its training.
    What is left of the budget goes where most hypervolume per epoch is expected: into the front's
    gaps, with other allocations and recipes, and into training its members on.

    A proposal depends on the seed, the trial's place and the earlier trials, on nothing else.

    Attributes
    ----------
    predictions
        By trial number, what the surrogate expected of the trials it chose.
    """

    def __init__(self, context: SamplerContext) -> None:
        self.predictions: dict[int, float] = {}
        self._context = context
        self._fallback = RandomSampler(seed=context.seed)
        self._history = History(
            context.space, higher_is_better=context.higher_is_better, costs=context.costs
        )
        self._recipes = Recipes(
            context.space.distributions, by_size=context.strategy.recipe_by_size
        )
        self._opening = Opening(
            context.strategy,
            context.allocator,
            self._recipes,
            budget=self._budget(),
            depth=context.depth if context.strategy.depth_first else None,
        )

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._context.space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        context = self._context
        places = places_of(study)
        place = places[trial.number]
        rng = np.random.default_rng([context.seed, place])
        finished = self._history.finished(study)
        recipes = self._recipes_after(study, finished, places)
        if place < len(self._opening.steps) or not finished:
            return self._descend(rng, recipes, place % len(self._opening.steps))
        cost = context.costs[place % len(context.costs)]
        members = front(finished, cost)
        moves = Moves(
            finished,
            members,
            cost=cost,
            space=context.space,
            allocator=context.allocator,
            recipes=recipes,
            least_params=self._opening.least_params,
            inherit=context.inherit,
        )
        chosen = self._choose(rng, moves, finished, members, trial.number, cost)
        return self._params(chosen.widths, chosen.recipe)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def advice(self, study: optuna.Study) -> str | None:
        """Return what might do better in another search, in a line, if anything is seen."""
        rates = [step.rate for step in self._opening.probes]
        tried = sorted((r, score) for score, r, _ in self._tried(self._history.finished(study)))
        if len(rates) < 3 or len(tried) < 2:
            return None
        lowest = tried[0][1] > tried[-1][1]
        if not lowest:
            tried.reverse()
        (best, score), (_, beside), *_ = tried
        inside = best not in (rates[0], rates[-1]) or score < max(score for _, score in tried)
        if inside or score - beside <= self._context.noise:
            return None
        lr = self._context.space.distributions[LR]
        assert isinstance(lr, FloatDistribution)  # else none would have been tried
        which, beyond = ("lowest", "below") if lowest else ("highest", "above")
        return (
            f"Of {len(rates)} learning rates that were tried the {which}, {best:.2g}, did best: "
            f"rates {beyond} `space.lr`'s {lr.low if lowest else lr.high:g} may do better still."
        )

    def _budget(self) -> float:
        """Return the budget in epochs; in trials where the space fixes a trial's epochs."""
        if self._fixed_epochs is not None:
            return self._context.budget
        if self._context.budget_epochs is not None:
            return self._context.budget_epochs
        usual: int = self._recipes.usual(1.0)[EPOCHS]
        return self._context.budget * usual

    def _params(self, widths: Any, recipe: Any) -> dict[str, Any]:
        known = {name: recipe[name] for name in self._recipes.distributions}
        return {**self._context.space.sparsities(widths), **known}

    def _recipes_after(
        self, study: optuna.Study, finished: Sequence[Finished], places: Mapping[int, int]
    ) -> Recipes:
        """Return the recipes with the learning rate that did best, once all have been tried."""
        tried = self._tried(finished)
        if len(tried) < 2:
            return self._recipes
        under_way = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if any(places[trial.number] < len(self._opening.probes) for trial in under_way):
            return self._recipes
        _, rate, share = max(tried)
        return self._recipes.with_rate(rate, share)

    def _tried(self, finished: Sequence[Finished]) -> list[tuple[float, float, float]]:
        """Return score, learning rate and share of the size of each trial that tried a rate."""
        return [
            (f.score, f.recipe[LR], step.share)
            for step in self._opening.probes
            for f in finished
            if f.recipe.get(LR) == step.rate and f.widths == step.widths
        ]

    def _descend(self, rng: np.random.Generator, recipes: Recipes, place: int) -> dict[str, Any]:
        """Return the parameters of a step of the opening, its recipe near the usual one."""
        step = self._opening.steps[place]
        recipe = recipes.usual(step.share)
        if step.rate is not None:
            recipe = {**recipes.shortest(recipe), LR: step.rate}
        else:
            recipe = recipes.with_epochs(recipe, 0.0) if step.scout else recipe
            recipe = recipes.near(rng, recipe, spread=OPENING_SPREAD, explore=OPENING_EXPLORE)
        return self._params(step.widths, recipe)

    # --- refinement -------------------------------------------------------------------------

    def _choose(
        self,
        rng: np.random.Generator,
        moves: Moves,
        finished: list[Finished],
        members: list[Finished],
        number: int,
        cost: str,
    ) -> Proposal:
        """Return the proposal of which most is expected per epoch."""
        strategy = self._context.strategy
        if not strategy.foresight or len(finished) < LEAST_HISTORY or len(members) < 2:
            return moves.draw(rng)
        proposals = moves.draw_many(rng, strategy.proposals)
        forecast = Forecast(
            finished,
            allocator=self._context.allocator,
            recipes=self._recipes,
            blocks=self._context.space.blocks,
            epochs=self._fixed_epochs,
            noise=NOISE_SHARE * self._context.noise,
        )
        prediction = forecast.predict(proposals)
        log_costs = np.log([self._cost_of(p, cost, members) for p in proposals])
        gains = self._staircase(members, cost).expected_gains(log_costs, prediction)
        epochs = np.array([forecast.epochs(proposal) for proposal in proposals])
        best = int(np.argmax(gains / epochs))
        sign = 1.0 if self._context.higher_is_better else -1.0
        self.predictions[number] = sign * float(prediction.mean[best])
        return proposals[best]

    @property
    def _fixed_epochs(self) -> int | None:
        epochs = self._context.space.space.epochs
        return epochs if isinstance(epochs, int) else None

    def _cost_of(self, proposal: Proposal, cost: str, members: list[Finished]) -> float:
        """Return a proposal's cost; one that only a measurement tells follows the size."""
        if cost == PARAMS:
            return proposal.params
        if cost == "macs":
            return self._context.allocator.cost.macs(proposal.widths)
        sizes = np.log([f.params for f in members])
        order = np.argsort(sizes)
        costs = np.log([f.costs[cost] for f in members])
        at = np.log(proposal.params)
        return float(np.exp(np.interp(at, sizes[order], costs[order])))

    def _staircase(self, members: list[Finished], cost: str) -> Staircase:
        scores = [f.score for f in members]
        spread = max(scores) - min(scores)
        most = max(f.costs[cost] for f in members)
        if cost == PARAMS:
            most = max(most, self._context.allocator.dense_params)
        return staircase(
            [(f.costs[cost], f.score) for f in members],
            floor=min(scores) - FLOOR_SHARE * spread,
            log_most=float(np.log(most)),
            log_least=math.log(self._opening.least_params) if cost == PARAMS else -math.inf,
        )


SAMPLERS: dict[str, Callable[[SamplerContext], BaseSampler]] = {
    "pruning": PruningSampler,
    "tpe": lambda c: CappedTPESampler(seed=c.own_seed, multivariate=True, constant_liar=True),
    # Optuna's default population of 50 would spend a usual budget on its first generation.
    "nsga2": lambda c: NSGAIISampler(seed=c.own_seed, population_size=10),
    "gp": lambda c: CappedGPSampler(seed=c.own_seed),
    "random": lambda c: RandomSampler(seed=c.own_seed),
}
