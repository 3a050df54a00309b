import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.searching.pareto import hypervolume, pareto
from autoprune.searching.surrogate import LIMIT, Prediction, Surrogate, staircase

RNG = np.random.default_rng(0)
POINTS = st.lists(st.tuples(st.integers(10, 1000), st.floats(0.5, 1.0)), min_size=1, max_size=8)


TRENDS = 4
"""All columns of a noisy plane."""


def noisy_plane(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of ones and three numbers, and what follows from them."""
    x = np.column_stack([np.ones(count), RNG.normal(size=(count, 3))])
    return x, 0.3 * x[:, 1] - 0.1 * x[:, 2] + 0.05 * np.sin(3 * x[:, 3]) + 0.7


def test_it_predicts_what_it_has_not_seen() -> None:
    x, y = noisy_plane(120)
    found = Surrogate(x[:100], y[:100], noise=0.01, trends=TRENDS).predict(x[100:])
    errors = np.abs(found.mean - y[100:])
    assert errors.mean() < 0.2 * np.abs(y[100:] - y[:100].mean()).mean()
    assert (errors < 4 * found.std).mean() > 0.9


def test_it_is_surest_where_it_has_looked() -> None:
    x, y = noisy_plane(40)
    surrogate = Surrogate(x, y, noise=1e-3, trends=TRENDS)
    there, far = surrogate.predict(x), surrogate.predict(x + 20)
    assert there.std.max() < 0.5 * far.std.min()
    assert np.abs(there.mean - y).max() < 0.02


def test_noise_is_not_learnt() -> None:
    x = np.ones((50, 1))
    y = RNG.normal(0.5, 0.1, 50)
    found = Surrogate(x, y, noise=0.1, trends=1).predict(np.ones((1, 1)))
    assert found.mean[0] == pytest.approx(y.mean(), abs=0.02)


def test_equal_scores_are_no_trouble() -> None:
    x = np.column_stack([np.ones(200), np.zeros(200)])
    found = Surrogate(x, np.full(200, 0.9), noise=0.0, trends=2).predict(np.ones((2, 2)))
    assert np.allclose(found.mean, 0.9, atol=0.01)  # hardly less: the trend is held near 0


def test_only_the_latest_trials_count() -> None:
    x, y = noisy_plane(LIMIT + 50)
    before = y.copy()
    before[:50] += 100.0
    query, _ = noisy_plane(5)
    one, other = (
        Surrogate(x, each, noise=0.01, trends=TRENDS).predict(query) for each in (y, before)
    )
    assert np.array_equal(one.mean, other.mean)


@given(points=POINTS, new=st.tuples(st.integers(10, 1000), st.floats(0.5, 1.0)))
def test_a_gain_is_the_hypervolume_that_a_point_adds(
    points: list[tuple[int, float]], new: tuple[int, float]
) -> None:
    def volume(some: list[tuple[int, float]]) -> float:
        shares = hypervolume(some, dense_params=1000, floor=0.5, decades=2.0)
        return shares * 2.0 * 0.5 * math.log(10)

    front = pareto(points, score=lambda p: p[1], costs=lambda p: p[:1])
    steps = staircase(front, floor=0.5, log_most=math.log(1000))
    gain = steps.gains(np.log([new[0]]), np.array([new[1]]))[0]
    assert gain == pytest.approx(volume([*points, new]) - volume(points), abs=1e-9)


def test_expected_gains_grow_with_what_is_unknown() -> None:
    steps = staircase([(10.0, 0.5), (100.0, 0.8)], floor=0.4, log_most=math.log(1000))
    at = np.log([50.0, 50.0, 50.0])
    found = steps.expected_gains(
        at, Prediction(mean=np.array([0.45, 0.45, 0.7]), std=np.array([1e-6, 0.1, 1e-6]))
    )
    assert found[0] == 0
    assert 0 < found[1] < found[2]
    assert found[2] == pytest.approx(0.2 * math.log(2))


def test_what_is_smaller_than_the_least_counts_as_the_least() -> None:
    front = [(5.0, 0.5), (100.0, 0.8)]
    steps = staircase(front, floor=0.4, log_most=math.log(1000), log_least=math.log(20))
    assert steps.gains(np.log([1.0]), np.array([0.5]))[0] == 0
    gain = steps.gains(np.log([1.0]), np.array([0.6]))[0]
    assert gain == pytest.approx(0.1 * math.log(100 / 20))


@pytest.mark.parametrize(("trends", "level"), [(0, 0.0), (1, 0.7), (2, 0.7 + 40 * 0.3)])
def test_far_away_the_trend_alone_is_left(trends: int, level: float) -> None:
    x, y = noisy_plane(60)
    far = np.array([[1.0, 40.0, 0.0, 0.0]])
    found = Surrogate(x, y, noise=0.01, trends=trends).predict(far)
    assert found.mean[0] == pytest.approx(level, abs=0.1 + 0.1 * level)
