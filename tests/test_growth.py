"""How a front grew, trial by trial."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.results.growth import growth, plane_of

POINTS = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1)), min_size=1, max_size=12)


@given(POINTS, st.booleans())
def test_it_is_the_hypervolume_of_all_trials_so_far(
    points: list[tuple[int, float]], higher: bool
) -> None:
    plane = plane_of(
        dense_params=10_000, dense_valid=2.0 if higher else -1.0, higher_is_better=higher, chance=0
    )
    assert plane is not None
    found = growth(points, plane)
    assert found == pytest.approx([plane.share(points[: n + 1]) for n in range(len(points))])
    assert found == sorted(found)


def test_accuracy_counts_as_in_the_rest_of_autoprune() -> None:
    plane = plane_of(dense_params=1000, dense_valid=0.9, chance=0.1)
    assert plane is not None
    assert growth([(10, 0.75), (10, 0.4)], plane) == [0.4, 0.4]


def test_a_score_that_is_no_number_adds_nothing() -> None:
    plane = plane_of(dense_params=1000, dense_valid=0.9)
    assert plane is not None
    assert growth([(10, math.nan), (10, 0.75)], plane) == [0.0, 0.4]


def test_nothing_spans_a_plane() -> None:
    assert plane_of(dense_params=9, dense_valid=3.0, scores=[3.0]) is None
    assert plane_of(dense_params=9, dense_valid=math.nan) is None
