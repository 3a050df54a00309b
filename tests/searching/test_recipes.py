import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from autoprune import Space
from autoprune.searching.recipes import (
    LARGE,
    LR_POWER,
    SMALL,
    USUAL_AT,
    Recipes,
    position,
    value_at,
)
from autoprune.searching.space import SearchSpace

SPACE = SearchSpace(
    channels={"a": 8}, space=Space(epochs=(2, 8), dropout=(0.1, 0.3)), has_dropout=True
)
RECIPES = Recipes(SPACE.distributions, by_size=True)


@pytest.mark.parametrize("at", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "distribution", [FloatDistribution(0.1, 10.0, log=True), FloatDistribution(-1.0, 3.0)]
)
def test_values_and_their_places(distribution: FloatDistribution, at: float) -> None:
    assert position(distribution, value_at(distribution, at)) == pytest.approx(at)


def test_a_place_outside_is_an_end() -> None:
    epochs = IntDistribution(2, 8, log=True)
    assert [value_at(epochs, at) for at in (-1.0, 0.0, 0.5, 1.0, 7.0)] == [2, 2, 4, 8, 8]


def test_small_models_copy_and_drop_less() -> None:
    large, middle, small = (RECIPES.usual(share) for share in (LARGE, 0.03, SMALL))
    assert large["distill_weight"] == 0.5
    assert large["distill_weight"] > middle["distill_weight"] > small["distill_weight"] == 0.0
    assert large["dropout"] == pytest.approx(0.2)
    assert large["dropout"] > middle["dropout"] > small["dropout"] == 0.1


def test_small_models_learn_faster() -> None:
    lr = SPACE.distributions["lr"]
    assert isinstance(lr, FloatDistribution)
    rates = [RECIPES.usual(share)["lr"] for share in (1.0, 1 / 4, USUAL_AT, 1 / 64, SMALL)]
    assert rates == sorted(rates)
    assert rates[2] == pytest.approx(value_at(lr, 0.5))
    assert rates[2] / rates[1] == pytest.approx(4**-LR_POWER)
    assert all(lr.low <= RECIPES.usual(share)["lr"] <= lr.high for share in (1e3, 1e-9))


def test_without_that_all_sizes_are_the_same() -> None:
    plain = Recipes(SPACE.distributions, by_size=False)
    assert plain.usual(1.0) == plain.usual(SMALL)


def test_recipes_hold_no_sparsities() -> None:
    assert RECIPES.usual(1.0).keys() == SPACE.distributions.keys() - {"sparsity/a"}


def test_near_is_near_and_keeps_the_epochs() -> None:
    rng = np.random.default_rng(0)
    known = RECIPES.with_epochs(RECIPES.usual(USUAL_AT), 1.0)
    drawn = [RECIPES.near(rng, known, spread=0.05, explore=0.0) for _ in range(50)]
    lr = SPACE.distributions["lr"]
    assert isinstance(lr, FloatDistribution)
    places = [position(lr, each["lr"]) for each in drawn]
    assert 0.02 < np.std(places) < 0.08
    assert np.mean(places) == pytest.approx(0.5, abs=0.03)
    assert {each["epochs"] for each in drawn} == {8}
    assert {each["criterion"] for each in drawn} == {known["criterion"]}


def test_exploring_takes_other_choices() -> None:
    rng = np.random.default_rng(0)
    known = RECIPES.usual(1.0)
    drawn = {RECIPES.near(rng, known, spread=0, explore=1)["criterion"] for _ in range(99)}
    assert drawn == set(SPACE.space.criteria)


@pytest.mark.parametrize("by_size", [True, False])
def test_a_found_learning_rate_is_the_usual_one_at_its_size(by_size: bool) -> None:
    recipes = Recipes(SPACE.distributions, by_size=by_size)
    found = recipes.with_rate(4e-3, 1 / 8)
    assert found.usual(1 / 8)["lr"] == pytest.approx(4e-3)
    ratio = found.usual(1 / 32)["lr"] / recipes.usual(1 / 32)["lr"]
    assert found.usual(1 / 2)["lr"] / recipes.usual(1 / 2)["lr"] == pytest.approx(ratio)
