import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nets import grouped

from autoprune import Space
from autoprune.pruning.cost import CostModel
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.forecast import LEAST_HEADROOM, Forecast
from autoprune.searching.history import Finished
from autoprune.searching.moves import Proposal
from autoprune.searching.recipes import Recipes
from autoprune.searching.space import SearchSpace

CHANNELS = grouped("mlp").channels
ALLOCATOR = Allocator(CostModel(grouped("mlp")))
SPACE = SearchSpace(channels=CHANNELS, space=Space(epochs=(1, 8)), has_dropout=False)
RECIPES = Recipes(SPACE.distributions, by_size=True)


def recipe(epochs: int, **changes: Any) -> dict[str, Any]:
    return {**RECIPES.usual(0.5), "epochs": epochs, **changes}


def worth(size: float, epochs: int, lr: float) -> float:
    """What a made-up trial comes to: bigger and longer is better, and one learning rate is best."""
    return 0.9 - 0.3 * (1 - size) ** 2 - 0.1 / epochs - 0.05 * math.log10(lr / 3e-3) ** 2


def finished(number: int, rng: np.random.Generator) -> Finished:
    size = float(rng.uniform(0.1, 0.9))
    widths = ALLOCATOR.widths(round(size * ALLOCATOR.dense_params), Shape())
    epochs, lr = int(rng.integers(1, 9)), float(10 ** rng.uniform(-3.2, -1.8))
    params = ALLOCATOR.cost.params(widths)
    return Finished(
        number=number,
        widths=widths,
        params=params,
        score=worth(params / ALLOCATOR.dense_params, epochs, lr) + rng.normal(0, 0.002),
        costs={"params": params},
        epochs=epochs,
        lineage_epochs=epochs,
        recipe=recipe(epochs, lr=lr),
    )


def history(count: int = 60) -> list[Finished]:
    rng = np.random.default_rng(0)
    return [finished(number, rng) for number in range(count)]


def forecast(known: list[Finished], **changes: Any) -> Forecast:
    settings: dict[str, Any] = {"epochs": None, "noise": 0.002, "blocks": ()} | changes
    return Forecast(known, allocator=ALLOCATOR, recipes=RECIPES, **settings)


def proposed(widths: Mapping[str, int], recipe: Mapping[str, Any]) -> Proposal:
    params = ALLOCATOR.cost.params(widths)
    return Proposal(widths=widths, params=params, recipe=recipe, parent=None)


def proposal(size: float, epochs: int, **changes: Any) -> Proposal:
    widths = ALLOCATOR.widths(round(size * ALLOCATOR.dense_params), Shape())
    return proposed(widths, recipe(epochs, **changes))


def test_it_ranks_what_it_has_not_seen() -> None:
    known = history(90)
    later = known[60:]
    proposals = [proposed(f.widths, f.recipe) for f in later]
    found = forecast(known[:60]).predict(proposals)
    truth = np.array([f.score for f in later])
    assert np.corrcoef(found.mean, truth)[0, 1] > 0.8


def test_it_learns_what_epochs_and_recipes_are_worth() -> None:
    known = forecast(history())
    few, many, hot = known.predict(
        [proposal(0.4, 2), proposal(0.4, 8), proposal(0.4, 8, lr=2e-2)]
    ).mean
    assert few < many
    assert hot < many


def test_nothing_is_expected_far_above_the_best() -> None:
    known = history()
    found = forecast(known).predict([proposal(share, 800) for share in (0.2, 0.5, 0.9, 1.0)])
    scores = [f.score for f in known]
    assert max(found.mean) <= max(scores) + LEAST_HEADROOM * (max(scores) - min(scores))


def test_there_is_less_to_gain_where_the_front_is_flat() -> None:
    # The same feature is worth less at large sizes, in score, as there is less headroom.
    known = forecast(history())
    small = known.predict([proposal(0.15, 2), proposal(0.15, 8)]).mean
    large = known.predict([proposal(0.85, 2), proposal(0.85, 8)]).mean
    assert small[1] - small[0] > large[1] - large[0]


def test_fixed_epochs_are_known() -> None:
    plain = forecast(history(), epochs=5)
    bare = proposed(CHANNELS, {"lr": 1e-3})
    assert plain.epochs(bare) == 5
    assert forecast(history()).epochs(proposal(0.5, 7)) == 7


@pytest.mark.parametrize(("scale", "shift"), [(50.0, 0.0), (0.01, -7.0)])
def test_any_scale_of_scores_will_do(scale: float, shift: float) -> None:
    known = history()
    moved = [replace(f, score=shift + scale * f.score) for f in known]
    one = forecast(known).predict([proposal(0.5, 4)])
    other = forecast(moved, noise=0.002 * scale).predict([proposal(0.5, 4)])
    assert other.mean[0] == pytest.approx(shift + scale * one.mean[0], abs=1e-3 * scale)
    assert other.std[0] == pytest.approx(scale * one.std[0], rel=1e-3)


def test_it_corrects_itself_by_what_it_was_off() -> None:
    known = history()
    room = 0.2
    hopeful = [replace(f, predicted=f.score + room) for f in known[-12:]]
    plain = forecast(known).predict([proposal(0.2, 4)]).mean[0]
    sober = forecast(known[:-12] + hopeful).predict([proposal(0.2, 4)]).mean[0]
    right = [replace(f, predicted=f.score) for f in known[-12:]]
    assert sober < plain - 0.05
    assert forecast(known[:-12] + right).predict([proposal(0.2, 4)]).mean[0] == plain
