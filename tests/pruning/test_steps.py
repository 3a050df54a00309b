from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.pruning.plan import FineTune, Plan
from autoprune.pruning.steps import steps_of


def plan(widths: dict[str, int], *, steps: int, epochs: int) -> Plan:
    return Plan(
        widths=widths, criterion="l2", finetune=FineTune(epochs=epochs, lr=0.1), steps=steps
    )


@given(
    pairs=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4),
    steps=st.integers(1, 9),
    epochs=st.integers(0, 20),
)
def test_steps_descend_to_the_plan_and_spend_its_epochs(
    pairs: list[tuple[int, int]], steps: int, epochs: int
) -> None:
    parent = {str(i): max(pair) for i, pair in enumerate(pairs)}
    wanted = {str(i): min(pair) for i, pair in enumerate(pairs)}
    found = steps_of(plan(wanted, steps=steps, epochs=epochs), parent)
    assert found[-1].widths == wanted
    assert sum(step.epochs for step in found) == epochs
    assert 1 <= len(found) <= max(min(steps, epochs), 1)
    assert all(step.epochs >= 1 for step in found) or epochs == 0
    assert found[-1].epochs >= max(step.epochs for step in found)
    for before, after in pairwise([parent, *(step.widths for step in found)]):
        assert all(after[n] <= before[n] for n in wanted)
        assert after != before or parent == wanted


def test_the_same_share_goes_each_time() -> None:
    found = steps_of(plan({"a": 10, "b": 64}, steps=3, epochs=12), {"a": 80, "b": 64})
    assert [step.widths["a"] for step in found] == [40, 20, 10]
    assert [step.widths["b"] for step in found] == [64, 64, 64]
    assert [step.epochs for step in found] == [3, 3, 6]


@pytest.mark.parametrize(
    ("steps", "epochs", "lengths"),
    [
        (1, 10, [10]),
        (2, 10, [5, 5]),
        (4, 10, [1, 1, 1, 7]),
        (3, 2, [1, 1]),  # no more steps than epochs
        (5, 1, [1]),
        (5, 0, [0]),
    ],
)
def test_the_schedule(steps: int, epochs: int, lengths: list[int]) -> None:
    found = steps_of(plan({"a": 4}, steps=steps, epochs=epochs), {"a": 256})
    assert [step.epochs for step in found] == lengths


def test_a_model_that_loses_nothing_is_trained_in_one_go() -> None:
    found = steps_of(plan({"a": 4}, steps=5, epochs=8), {"a": 4})
    assert [(step.widths, step.epochs) for step in found] == [({"a": 4}, 8)]


def test_steps_that_cut_nothing_are_left_out() -> None:
    found = steps_of(plan({"a": 11}, steps=5, epochs=8), {"a": 12})
    assert [step.widths for step in found] == [{"a": 11}]
