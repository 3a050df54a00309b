"""Which three models of a front are worth a look."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from autoprune.errors import AutopruneError
from autoprune.results.choosing import knee, point_of, worth_a_look


@dataclass(frozen=True, kw_only=True)
class Sized:
    params: int
    valid: float


def front(**scores: float) -> list[Sized]:
    """Return models by their size, as in ``p100=0.9``."""
    return [Sized(params=int(size[1:]), valid=valid) for size, valid in scores.items()]


DENSE = Sized(params=100_000, valid=0.98)


def test_the_smallest_loses_at_most_a_point() -> None:
    models = front(p10=0.5, p100=0.9699, p1000=0.97, p10000=0.975, p50000=0.981)
    chosen = worth_a_look(models, dense=DENSE)
    assert chosen.smallest == models[2]
    assert chosen.best == models[-1]


def test_a_score_a_rounding_away_from_a_point_meets_it() -> None:
    dense = Sized(params=9, valid=355 / 359)
    model = Sized(params=3, valid=355 / 359 - 0.01)
    assert worth_a_look([model], dense=dense).smallest == model


def test_none_is_the_smallest_if_all_lose_more() -> None:
    chosen = worth_a_look(front(p10=0.5, p100=0.9), dense=DENSE)
    assert chosen.smallest is None
    assert chosen.best.params == 100


def test_of_equally_good_models_the_best_is_the_smallest() -> None:
    # Over latency, a front may hold models of one score.
    assert worth_a_look(front(p10=0.5, p200=0.9, p100=0.9), dense=DENSE).best.params == 100


def test_an_error_is_better_when_lower() -> None:
    dense = Sized(params=100_000, valid=20.0)
    models = front(p10=60.0, p1000=20.3, p5000=20.1, p50000=19.5)
    chosen = worth_a_look(models, dense=dense, higher_is_better=False)
    assert chosen.point == pytest.approx(0.2)
    assert (chosen.smallest, chosen.knee, chosen.best) == (models[2], models[1], models[3])


def test_what_a_point_is() -> None:
    assert point_of(0.5) == 0.01
    assert point_of(0.5, higher_is_better=False) == 0.005
    assert point_of(-20.0) == pytest.approx(0.2)


@pytest.mark.parametrize("scale", [1, 7, 1000])
def test_the_knee_does_not_go_by_units(scale: int) -> None:
    models = [Sized(params=scale * p, valid=v) for p, v in [(10, 0.1), (100, 0.8), (9000, 0.9)]]
    assert knee(models) == models[1]


def test_a_dominated_model_is_no_knee() -> None:
    models = front(p10=0.1, p90=0.2, p100=0.8, p9000=0.9)
    assert knee([*models, Sized(params=101, valid=0.79)]) == models[2]


def test_without_a_bend_the_knee_is_the_best() -> None:
    assert knee(front(p10=0.1, p100=0.9)).params == 100
    assert knee(front(p10=0.5)).params == 10


def test_an_empty_front_has_none() -> None:
    with pytest.raises(AutopruneError, match="it is empty"):
        worth_a_look([], dense=DENSE)
