from dataclasses import replace

import pytest

from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import Candidate, Score
from autoprune.searching.stopping import StoppingRule

RULE = StoppingRule(higher_is_better=True)


def completed(curve: list[float], *, params: int = 100, epochs: int = 6) -> Candidate:
    plan = Plan(widths={}, criterion="l1", finetune=FineTune(epochs=epochs, lr=0.1))
    score = Score(valid=curve[-1], params=params, macs=0, size_bytes=0)
    return Candidate(
        name="t", trial=0, plan=plan, score=score, parent="dense", epochs=epochs, curve=tuple(curve)
    )


GOOD = completed([0.5, 0.6, 0.8, 0.8, 0.8, 0.8, 0.9])


def stopped(
    curve: list[float],
    *witnesses: Candidate,
    params: int = 100,
    epochs: int = 6,
    rule: StoppingRule = RULE,
) -> bool:
    return rule.dominated(costs={"params": params}, epochs=epochs, curve=curve, completed=witnesses)


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [(1, ()), (2, ()), (3, (2,)), (4, (2,)), (5, (2, 4)), (17, (2, 4, 8, 16)), (16, (2, 4, 8))],
)
def test_rungs_double_and_spare_the_last_epoch(epochs: int, rungs: tuple[int, ...]) -> None:
    assert RULE.rungs(epochs) == rungs


def test_a_loser_is_stopped() -> None:
    assert stopped([0.1, 0.2, 0.3], GOOD, GOOD)


def test_one_witness_may_have_been_lucky() -> None:
    assert not stopped([0.1, 0.2, 0.3], GOOD)
    assert stopped([0.1, 0.2, 0.3], GOOD, rule=StoppingRule(higher_is_better=True, witnesses=1))


@pytest.mark.parametrize("length", [1, 2, 4, 6, 7])
def test_only_rungs_stop(length: int) -> None:
    assert not stopped([0.1] * length, GOOD, GOOD)


def test_every_rung_stops() -> None:
    assert stopped([0.1] * 5, GOOD, GOOD)


def test_the_same_rung_is_compared() -> None:
    # Better than the others were after two epochs, worse than what they became.
    late = completed([0.1, 0.1, 0.3, 0.9, 0.9, 0.9, 0.9])
    assert not stopped([0.2, 0.3, 0.4], late, late)
    assert stopped([0.2, 0.3, 0.4, 0.4, 0.4], late, late)


def test_larger_models_are_no_witnesses() -> None:
    larger = completed(list(GOOD.curve), params=101)
    assert not stopped([0.1, 0.2, 0.3], larger, larger)
    assert not stopped([0.1, 0.2, 0.3], GOOD, larger)
    assert stopped([0.1, 0.2, 0.3], GOOD, GOOD, params=101)


def test_slower_models_are_no_witnesses_where_latency_counts() -> None:
    def timed(latency: float | None) -> Candidate:
        return replace(GOOD, score=replace(GOOD.score, latency=latency))

    def dominated(*witnesses: Candidate) -> bool:
        return RULE.dominated(
            costs={"params": 100, "latency": 0.2},
            epochs=6,
            curve=[0.1, 0.2, 0.3],
            completed=witnesses,
        )

    assert dominated(timed(0.1), timed(0.2))
    assert not dominated(timed(0.1), timed(0.3))
    assert not dominated(timed(0.1), timed(None))


def test_other_schedules_are_no_witnesses() -> None:
    longer = completed(list(GOOD.curve), epochs=12)
    assert not stopped([0.1, 0.2, 0.3], longer, longer)


def test_trials_of_several_steps_are_compared_with_their_like() -> None:
    # Of 6 epochs, 2 went to wider models: 4 are left, and their rung 2 is the only one.
    like = completed([0.5, 0.6, 0.8, 0.8, 0.8])

    def dominated(curve: list[float], *witnesses: Candidate, earlier: int = 2) -> bool:
        return RULE.dominated(
            costs={"params": 100},
            epochs=6,
            earlier_epochs=earlier,
            curve=curve,
            completed=witnesses,
        )

    assert dominated([0.1, 0.2, 0.3], like, like)
    assert not dominated([0.1, 0.2, 0.3], GOOD, GOOD)
    assert not dominated([0.1, 0.2, 0.3], like, like, earlier=0)
    assert not dominated([0.1] * 5, like, like)


def test_short_curves_are_no_witnesses() -> None:
    short = completed([0.9, 0.9])
    assert not stopped([0.1, 0.2, 0.3], short, short)


def test_a_lead_must_exceed_the_margin() -> None:
    rule = StoppingRule(higher_is_better=True, margin=0.1)
    assert not stopped([0, 0, 0.73], GOOD, GOOD, rule=rule)  # 0.8 less a tenth is 0.72
    assert stopped([0, 0, 0.71], GOOD, GOOD, rule=rule)


def test_low_may_be_good() -> None:
    rule = StoppingRule(higher_is_better=False)
    assert not stopped([0.1, 0.2, 0.3], GOOD, GOOD, rule=rule)
    assert stopped([0.9, 0.9, 0.9], GOOD, GOOD, rule=rule)


def test_negative_scores_have_a_margin_too() -> None:
    rule = StoppingRule(higher_is_better=True, margin=0.1)
    other = completed([-2.0, -2.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    assert not stopped([-2, -2, -1.05], other, other, rule=rule)
    assert stopped([-2, -2, -1.15], other, other, rule=rule)
