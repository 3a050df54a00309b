"""How a trial is trained: what a size usually wants, and what is near a known recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autoprune.searching.space import DROP, NO_SPARSIFY, SPARSITY

LARGE, SMALL = 1 / 8, 1 / 250
"""Shares of the dense parameters between which what `FADING` names goes to its least."""
EPOCHS, CRITERION, LR = "epochs", "criterion", "lr"
FADING = ("distill_weight", "dropout")
USUAL_AT = 1 / 16
"""Share of the dense parameters at which the middle of the learning rates is the usual one."""
LR_POWER = -0.35
"""How the learning rate follows the size: narrow layers bear more (Yang et al. 2021)."""
NARROW = 4.0
"""How often the lowest learning rate may go into the highest, for the middle to be near enough."""
RATE_STEP = 3.0
"""Largest factor between learning rates that are tried."""


class Recipes:
    """Draws recipes: every searched parameter but the sparsities.

    Parameters
    ----------
    distributions
        Of a trial's parameters.
    by_size
        Whether usual distillation and dropout fall with a model's size, and learning rates rise.
    rate
        The usual learning rate at `USUAL_AT`; by default the middle of what is allowed.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        *,
        by_size: bool,
        rate: float | None = None,
    ) -> None:
        self.distributions = {
            name: d for name, d in distributions.items() if not name.startswith((SPARSITY, DROP))
        }
        self._by_size = by_size
        self._rate = rate

    def rates(self) -> list[float]:
        """Return learning rates to try, ascending, where there are many to choose from."""
        lr = self.distributions.get(LR)
        if not isinstance(lr, FloatDistribution) or lr.high <= NARROW * lr.low:
            return []
        count = math.ceil(math.log(lr.high / lr.low) / math.log(RATE_STEP))
        return [float(value_at(lr, (i + 0.5) / count)) for i in range(count)]

    def with_rate(self, rate: float, share: float) -> Recipes:
        """Return the recipes to which a learning rate is the usual one at a share of the size."""
        usual = rate / self._bears(share)
        return Recipes(self.distributions, by_size=self._by_size, rate=usual)

    def _bears(self, share: float) -> float:
        """Return how much higher a learning rate a size bears than `USUAL_AT` does."""
        return (share / USUAL_AT) ** LR_POWER if self._by_size else 1.0

    def usual(self, share: float) -> dict[str, Any]:
        """Return what a model of a `share` of the dense parameters is usually trained with.

        The middle of what is allowed, epochs included; of criteria the first. Small models are
        too weak to copy the dense one and to need noise: distillation and dropout fade. They are
        narrow, too, and bear a higher learning rate.
        """
        found = {name: _middle(name, d) for name, d in self.distributions.items()}
        for name in FADING if self._by_size else ():
            distribution = self.distributions.get(name)
            if isinstance(distribution, FloatDistribution):
                low = distribution.low
                found[name] = low + (found[name] - low) * _fade(share)
        lr = self.distributions.get(LR)
        if isinstance(lr, FloatDistribution):
            usual = (found[LR] if self._rate is None else self._rate) * self._bears(share)
            found[LR] = min(max(usual, lr.low), lr.high)
        return found

    def near(
        self, rng: np.random.Generator, known: Mapping[str, Any], *, spread: float, explore: float
    ) -> dict[str, Any]:
        """Draw a recipe near a known one.

        Numbers are normal around it, `spread` a share of their range; choices are any with
        probability `explore`. Epochs stay.
        """
        found: dict[str, Any] = {}
        for name, distribution in self.distributions.items():
            if name == EPOCHS:
                found[name] = known[name]
            elif isinstance(distribution, CategoricalDistribution):
                choices = distribution.choices
                other = choices[int(rng.integers(len(choices)))]
                found[name] = other if rng.random() < explore else known[name]
            elif isinstance(distribution, (FloatDistribution, IntDistribution)):
                at = position(distribution, known[name]) + spread * rng.normal()
                found[name] = value_at(distribution, at)
        return found

    def shortest(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return `recipe` with the fewest epochs: no sparsifier, and one step, where allowed."""
        found = self.with_epochs(recipe, 0.0)
        for name, wanted in (("sparsify", NO_SPARSIFY), ("steps", 1)):
            distribution = self.distributions.get(name)
            if isinstance(distribution, CategoricalDistribution) and wanted in distribution.choices:
                found[name] = wanted
        return found

    def with_epochs(self, recipe: Mapping[str, Any], at: float) -> dict[str, Any]:
        """Return `recipe` with the epochs `at` a place between fewest (0) and most (1)."""
        epochs = self.distributions.get(EPOCHS)
        if not isinstance(epochs, IntDistribution):
            return dict(recipe)
        return {**recipe, EPOCHS: value_at(epochs, at)}


def position(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Return where a value lies between the ends of its range, in [0, 1]; logs where it has them.

    >>> position(FloatDistribution(0.01, 1.0, log=True), 0.1)
    0.5
    """
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.0


def value_at(distribution: FloatDistribution | IntDistribution, at: float) -> float | int:
    """Return the value at a place in [0, 1] of a range; outside, the nearer end."""
    low, high = float(distribution.low), float(distribution.high)
    at = min(max(at, 0.0), 1.0)
    if distribution.log:
        value = math.exp(math.log(low) + at * (math.log(high) - math.log(low)))
    else:
        value = low + at * (high - low)
    value = min(max(value, low), high)
    return round(value) if isinstance(distribution, IntDistribution) else value


def _middle(name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        return choices[0] if name == CRITERION else choices[len(choices) // 2]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return value_at(distribution, 0.5)


def _fade(share: float) -> float:
    """Return 1 for large models, 0 for the smallest, linear in the log of the size."""
    at = (math.log(share) - math.log(SMALL)) / (math.log(LARGE) - math.log(SMALL))
    return min(max(at, 0.0), 1.0)
