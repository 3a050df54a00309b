import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import Candidate, Score
from autoprune.searching.pareto import front_of, hypervolume, pareto

Point = tuple[int, float]

# Few values, so that ties are common.
POINTS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([0.0, 0.25, 0.5, 0.75])), max_size=10
)
SCATTERED = st.lists(st.tuples(st.integers(1, 2_000), st.floats(-0.2, 1.3)), max_size=6)


def better(one: Point, other: Point) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(points=POINTS)
def test_front_by_brute_force(points: list[Point]) -> None:
    numbered = list(enumerate(points))
    expected = [
        (i, p) for i, p in numbered if not any(better(q, p) for q in points) and p not in points[:i]
    ]
    front = pareto(numbered, score=lambda n: n[1][1], costs=lambda n: n[1][:1])
    assert front == sorted(expected, key=lambda n: n[1][0])


Triple = tuple[int, int, float]
TRIPLES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.75])), max_size=10
)


@given(points=TRIPLES)
def test_a_front_over_two_costs_by_brute_force(points: list[Triple]) -> None:
    def beats(one: Triple, other: Triple) -> bool:
        costs = one[0] <= other[0] and one[1] <= other[1]
        return costs and one[2] >= other[2] and one != other

    expected = {p for p in points if not any(beats(q, p) for q in points)}
    front = pareto(points, score=lambda p: p[2], costs=lambda p: p[:2])
    assert set(front) == expected
    assert len(front) == len(expected)


def test_the_front_of_candidates_is_over_the_costs_asked_for() -> None:
    def timed(name: str, params: int, valid: float, latency: float | None) -> Candidate:
        one = candidate(name, params, valid)
        return replace(one, score=replace(one.score, latency=latency))

    found = [timed("a", 10, 0.5, 0.9), timed("b", 20, 0.4, 0.1), timed("c", 30, 0.3, None)]

    def names(*costs: str) -> list[str]:
        return [c.name for c in front_of(found, higher_is_better=True, costs=costs)]

    assert names("params") == ["a"]
    assert names("params", "latency") == ["a", "b"]
    assert names("latency") == ["a", "b"]


def candidate(name: str, params: int, valid: float) -> Candidate:
    plan = Plan(widths={}, criterion="l1", finetune=FineTune(epochs=1, lr=0.1))
    score = Score(valid=valid, params=params, macs=0, size_bytes=0)
    return Candidate(name=name, trial=0, plan=plan, score=score, parent="dense", epochs=1)


def test_the_front_knows_which_way_is_up() -> None:
    found = [candidate("a", 10, 0.3), candidate("b", 20, 0.5), candidate("c", 30, 0.2)]
    assert [c.name for c in front_of(found, higher_is_better=True)] == ["a", "b"]
    assert [c.name for c in front_of(found, higher_is_better=False)] == ["a", "c"]


@given(points=SCATTERED, floor=st.sampled_from([0.0, 0.4]), decades=st.sampled_from([1.0, 2.5]))
def test_hypervolume_by_brute_force(points: list[Point], floor: float, decades: float) -> None:
    dense, cells = 1_000, 80
    covered = 0
    for i in range(cells):
        for j in range(cells):
            saved = decades * (i + 0.5) / cells
            score = floor + (1 - floor) * (j + 0.5) / cells
            covered += any(math.log10(dense / p) >= saved and s >= score for p, s in points)
    found = hypervolume(points, dense_params=dense, floor=floor, decades=decades)
    # A staircase crosses at most a row and a column of cells.
    assert found == pytest.approx(covered / cells**2, abs=2 / cells)


@given(points=SCATTERED, extra=st.tuples(st.integers(1, 2_000), st.floats(-0.2, 1.3)))
def test_another_point_never_costs_volume(points: list[Point], extra: Point) -> None:
    before = hypervolume(points, dense_params=1_000, floor=0.2)
    after = hypervolume([*points, extra], dense_params=1_000, floor=0.2)
    assert 0 <= before <= after + 1e-12
    assert after <= 1 + 1e-12


def test_the_whole_plane() -> None:
    assert hypervolume([(1, 1.0)], dense_params=1_000, floor=0.5) == pytest.approx(1.0)
    assert hypervolume([], dense_params=1_000, floor=0.5) == 0
