from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import Candidate, Score
from autoprune.searching.stopping import StoppingRule, noise_of

RULE = StoppingRule(higher_is_better=True)


def completed(curve: Sequence[float], *, params: int = 100) -> Candidate:
    plan = Plan(widths={}, criterion="l1", finetune=FineTune(epochs=len(curve) - 1, lr=0.1))
    score = Score(valid=curve[-1], params=params, macs=0, size_bytes=0)
    return Candidate(
        name="t", trial=0, plan=plan, score=score, parent="dense", epochs=8, curve=tuple(curve)
    )


GOOD = completed([0.5, 0.8, 0.85, 0.88, 0.88, 0.9, 0.88, 0.9, 0.9])
SLOW = completed([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.88, 0.9, 0.91])
POOR = completed([0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.49, 0.5, 0.5])
# Of noise 0.02: perfect is 0.9 + 3 * 0.02. They cost too much to be anyone's leader.
OTHERS = [completed([0.5, 0.6, 0.7, 0.8, 0.86, 0.88, 0.86, 0.88, 0.86], params=10**6)] * 4


def stopped(
    curve: Sequence[float],
    *finished: Candidate,
    params: int = 100,
    epochs: int = 8,
    rule: StoppingRule = RULE,
    earlier: int = 0,
    inherits: bool = False,
    others: Sequence[Candidate] = OTHERS,
) -> bool:
    return rule.dominated(
        costs={"params": params},
        epochs=epochs,
        curve=curve,
        completed=[*others, *finished],
        inherits=inherits,
        earlier_epochs=earlier,
    )


@pytest.mark.parametrize(("epochs", "rungs"), [(1, []), (2, []), (3, [2]), (5, [2, 3, 4])])
def test_every_epoch_but_the_first_and_the_last_is_a_rung(epochs: int, rungs: list[int]) -> None:
    assert list(RULE.rungs(epochs)) == rungs


def test_noise_is_how_scores_move_when_little_is_left_to_learn() -> None:
    assert noise_of([[0.0, 0.9, 0.5, 0.6, 0.5]]) == pytest.approx(0.1)
    steady = [0.5] * 5
    assert noise_of([[0.0, 0.9, 0.5, 0.6, 0.5], steady]) == pytest.approx(0.05)
    assert noise_of([[0.0, 0.9, 0.5, 0.6, 0.5], steady, steady]) == 0.0
    assert noise_of([]) == noise_of([[0.1, 0.9]]) == 0.0


def test_a_trial_far_behind_its_leader_is_stopped() -> None:
    assert stopped([0.1, 0.1, 0.1], GOOD)


def test_a_trial_near_its_leader_goes_on() -> None:
    assert not stopped([0.1, 0.7, 0.84], GOOD)


@pytest.mark.parametrize(("inherits", "part"), [(False, 0.5), (True, 1.0)])
def test_how_far_is_too_far_is_a_factor_on_the_error(inherits: bool, part: float) -> None:
    # A quarter of the way from 6 to 2 times what the leader lacked in the end.
    limit = 0.96 - part * 6**0.75 * 2**0.25 * 0.06
    assert stopped([0.1, 0.1, limit - 1e-6], GOOD, inherits=inherits)
    assert not stopped([0.1, 0.1, limit + 1e-6], GOOD, inherits=inherits)


def test_less_is_forgiven_towards_the_end() -> None:
    flat = completed([0.8] * 9)  # it lacks 0.12
    judged = [stopped([0.45] * (rung + 1), flat, inherits=True) for rung in range(2, 8)]
    assert judged == sorted(judged)
    assert judged[0] is False
    assert judged[-1] is True


def test_one_bad_epoch_stops_nobody() -> None:
    assert not stopped([0.5, 0.82, 0.1], GOOD)
    assert not stopped([0.5, 0.1, 0.84], GOOD)
    assert stopped([0.5, 0.82, 0.1, 0.1], GOOD)


def test_a_trial_ahead_of_where_its_leader_was_goes_on() -> None:
    # Far from what the leader came to, and yet as good as it was then.
    assert not stopped([0.1, 0.2, 0.3], SLOW)
    assert stopped([0.1, 0.19, 0.29], SLOW)


@pytest.mark.parametrize("length", [1, 9, 10])
def test_neither_the_cut_nor_the_last_epoch_is_a_rung(length: int) -> None:
    assert not stopped([0.1] * length, GOOD)


def test_short_trials_are_never_stopped() -> None:
    assert not stopped([0.1, 0.1], GOOD, epochs=1)
    assert not stopped([0.1, 0.1], GOOD, epochs=2)
    assert not stopped([0.1, 0.1], GOOD, epochs=3)
    assert stopped([0.1, 0.1, 0.1], GOOD, epochs=3)


def test_larger_models_lead_nobody() -> None:
    larger = replace(GOOD, score=replace(GOOD.score, params=101))
    assert not stopped([0.1, 0.1, 0.1], larger)
    assert stopped([0.1, 0.1, 0.1], larger, params=101)


def test_slower_models_lead_nobody_where_latency_counts() -> None:
    def timed(latency: float | None) -> Candidate:
        return replace(GOOD, score=replace(GOOD.score, latency=latency))

    def dominated(other: Candidate) -> bool:
        return RULE.dominated(
            costs={"params": 100, "latency": 0.2},
            epochs=8,
            curve=[0.1, 0.1, 0.1],
            completed=[*OTHERS, other],
            inherits=False,
        )

    assert dominated(timed(0.2))
    assert not dominated(timed(0.3))
    assert not dominated(timed(None))


def test_the_leader_is_who_ends_best() -> None:
    # The other one was far better at first.
    quick = completed([0.85] * 9)
    assert not stopped([0.1, 0.25, 0.35], quick, SLOW)
    assert stopped([0.1, 0.25, 0.35], quick)


def test_a_trial_of_another_length_is_compared_at_the_same_share_of_its_epochs() -> None:
    # Half as long, with the same course: epoch 4 of 8 is as epoch 2 of 4.
    short = completed(GOOD.curve[::2])
    for last in (0.1, 0.6, 0.75, 0.87):
        curve = [0.1, 0.1, 0.1, 0.1, last]
        assert stopped(curve, short) == stopped(curve, GOOD) == (last < 0.8)
    assert stopped([0.1, 0.1, 0.1], short, epochs=4)


def test_epochs_on_wider_models_do_not_count() -> None:
    # Of 12 epochs, 4 went to earlier steps: 8 are left.
    assert stopped([0.1, 0.1, 0.1], GOOD, epochs=12, earlier=4)
    assert not stopped([0.1] * 3, GOOD, epochs=5, earlier=3)


def test_little_experience_stops_nobody() -> None:
    assert not stopped([0.1, 0.1, 0.1], GOOD, others=OTHERS[:1])
    assert stopped([0.1, 0.1, 0.1], GOOD, others=OTHERS[:2])


def test_without_a_measure_of_noise_nobody_is_stopped() -> None:
    steady = [completed([0.9] * 9)] * 5
    assert not stopped([0.1, 0.1, 0.1], *steady, others=())
    assert not stopped([0.1, 0.1, 0.1], *[completed([0.9, 0.9])] * 5, others=())


def test_noisy_scores_stop_fewer() -> None:
    noisy = [completed([0.5, 0.6, 0.7, 0.8, 0.9, 0.6, 0.9, 0.6, 0.9], params=10**6)] * 4
    assert stopped([0.1, 0.3, 0.3], GOOD)
    assert not stopped([0.1, 0.3, 0.3], GOOD, others=noisy)


def test_low_may_be_good() -> None:
    rule = StoppingRule(higher_is_better=False)

    def mirrored(other: Candidate) -> Candidate:
        return completed([1 - s for s in other.curve], params=other.score.params)

    others = [mirrored(o) for o in OTHERS]
    assert stopped([0.9, 0.9, 0.9], mirrored(GOOD), rule=rule, others=others)
    assert not stopped([0.9, 0.3, 0.15], mirrored(GOOD), rule=rule, others=others)


def test_poor_trials_do_not_stop_a_better_one() -> None:
    assert not stopped([0.1, 0.25, 0.35], POOR)


SCORES = st.floats(-1, 1).map(lambda s: round(s, 3))
CURVES = st.lists(SCORES, min_size=9, max_size=9)


@given(
    curves=st.lists(CURVES, min_size=3, max_size=6),
    curve=st.lists(SCORES, min_size=1, max_size=9),
    shift=st.floats(-5, 5),
    scale=st.floats(0.1, 10),
)
def test_the_units_of_the_score_do_not_matter(
    curves: list[list[float]], curve: list[float], shift: float, scale: float
) -> None:
    def judged(high: bool, sign: float) -> bool:
        return stopped(
            [sign * (shift + scale * s) for s in curve],
            *(completed([sign * (shift + scale * s) for s in c]) for c in curves),
            rule=StoppingRule(higher_is_better=high),
            others=(),
        )

    plain = stopped(curve, *map(completed, curves), others=())
    if plain != judged(True, 1.0):  # the limit may lie within rounding of the score
        nudged = [[s + e for s in curve] for e in (-1e-9, 1e-9)]
        assert len({stopped(c, *map(completed, curves), others=()) for c in nudged}) == 2
    assert judged(True, 1.0) == judged(False, -1.0)


@given(
    curves=st.lists(CURVES, min_size=3, max_size=6), length=st.integers(2, 8), gain=st.floats(0, 1)
)
def test_a_better_score_is_not_stopped_where_a_worse_one_is_not(
    curves: list[list[float]], length: int, gain: float
) -> None:
    finished = [completed(c) for c in curves]
    worse = [0.0] * length
    better = [*worse[:-1], gain]
    assert stopped(worse, *finished, others=()) or not stopped(better, *finished, others=())


@given(curves=st.lists(CURVES, min_size=3, max_size=6), share=st.integers(1, 7))
def test_whoever_does_as_the_leader_did_is_not_stopped(
    curves: list[list[float]], share: int
) -> None:
    finished = [completed(c) for c in curves]
    leader = max(finished, key=lambda c: c.score.valid)
    assert not stopped(leader.curve[: share + 1], *finished, others=())
