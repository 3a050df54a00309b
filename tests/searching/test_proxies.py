import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import Candidate, Score
from autoprune.searching.proxies import (
    BIN_WIDTH,
    EPOCH0,
    correlation,
    correlations,
    epoch0,
    size_bins,
    spearman,
)


def candidate(name: str, params: int, *curve: float) -> Candidate:
    return Candidate(
        name=name,
        trial=0,
        plan=Plan(widths={}, criterion="l1", finetune=FineTune(epochs=1, lr=0.1)),
        score=Score(valid=curve[-1], params=params, macs=0, size_bytes=0),
        parent="dense",
        epochs=1,
        curve=curve,
    )


def test_spearman_agrees_with_scipy_where_there_are_ties() -> None:
    from scipy.stats import spearmanr

    first, second = [3.0, 1.0, 1.0, 2.0, 5.0, 4.0], [2.0, 2.0, 1.0, 4.0, 6.0, 4.0]
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 1, 1], [1, 2, 3, 4]),
        ([1, 2, 3, 4], [5, 5, 5, 5]),
        ([1, 2, 3, math.nan], [1, 2, 3, 4]),
        ([], []),
    ],
    ids=["three", "equal proxies", "equal scores", "three and a gap", "none"],
)
def test_what_cannot_be_ranked_has_no_correlation(first: list[float], second: list[float]) -> None:
    assert spearman(first, second) is None


def test_size_alone_is_no_merit() -> None:
    # Within each size the proxy ranks backwards; over all, the larger models lift it.
    sizes = [100] * 5 + [1_000] * 5 + [10_000] * 5
    proxy = [float(10 * (s > 100) + 10 * (s > 1_000) - i % 5) for i, s in enumerate(sizes)]
    final = [float(10 * (s > 100) + 10 * (s > 1_000) + i % 5) for i, s in enumerate(sizes)]
    found = correlation(sizes, proxy, final)
    assert found.within_sizes == pytest.approx(-1)
    assert found.pooled is not None
    assert found.pooled > 0.7
    assert (found.bins, found.binned, found.candidates) == (3, 15, 15)


def test_a_size_weighs_as_much_as_it_has_trials() -> None:
    # Eight of a size ranked rightly, four of another backwards: (8 - 4) / 12.
    found = correlation([10] * 8 + [1_000] * 4, [*range(8), 3, 2, 1, 0], [*range(8), 0, 1, 2, 3])
    assert found.within_sizes == pytest.approx(1 / 3)


def test_sizes_of_too_few_trials_do_not_count() -> None:
    found = correlation([10, 10, 10, 1_000, 1_000], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert found.within_sizes is None
    assert (found.bins, found.binned) == (0, 0)
    assert found.pooled == pytest.approx(1)


@given(st.lists(st.integers(1, 10**7), max_size=30))
def test_bins_hold_every_model_once_and_are_narrow(params: list[int]) -> None:
    bins = size_bins(params)
    assert sorted(i for members in bins for i in members) == list(range(len(params)))
    for members in bins:
        sizes = [params[i] for i in members]
        assert max(sizes) <= min(sizes) * 10**BIN_WIDTH
    for lower, upper in pairwise(bins):
        assert max(params[i] for i in lower) < min(params[i] for i in upper)


def test_the_first_score_is_a_proxy_of_what_was_trained() -> None:
    trained = [candidate(f"t{i}", 100, 0.1 * i, 0.5 + 0.1 * i) for i in range(4)]
    untrained = candidate("t9", 100, 0.9)
    proxies = {EPOCH0: epoch0([*trained, untrained])}
    assert set(proxies[EPOCH0]) == {"t0", "t1", "t2", "t3"}
    assert correlations([*trained, untrained], proxies)[EPOCH0].within_sizes == pytest.approx(1)


def test_a_proxy_of_some_candidates_is_judged_on_these() -> None:
    trained = [candidate(f"t{i}", 100, 0.1 * i, 0.5 + 0.1 * i) for i in range(6)]
    predicted = {"t1": 4.0, "t2": 3.0, "t3": 2.0, "t4": 1.0, "stopped": 0.0}
    found = correlations(trained, {"predicted": predicted, "unknown": {}})
    assert found["predicted"].candidates == 4
    assert found["predicted"].within_sizes == pytest.approx(-1)
    assert found["unknown"].within_sizes is None
    assert found["unknown"].pooled is None
