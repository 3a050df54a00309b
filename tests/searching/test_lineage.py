import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import Candidate, Score
from autoprune.searching.lineage import MUCH_LESS, NEAR, choose_parent, covers
from autoprune.searching.pareto import front_of

WIDTHS = st.fixed_dictionaries({"a": st.integers(1, 4), "b": st.integers(1, 4)})


def candidate(
    widths: dict[str, int], valid: float, name: str = "t", *, epochs: int = 3
) -> Candidate:
    return Candidate(
        name=name,
        trial=0,
        plan=Plan(widths=widths, criterion="l1", finetune=FineTune(epochs=1, lr=0.1)),
        score=Score(valid=valid, params=10 * widths["a"] + widths["b"], macs=5, size_bytes=99),
        parent="dense",
        epochs=epochs,
        curve=(0.1, valid),
    )


SCORES = st.sampled_from([0.2, 0.4, 0.6, 0.8])
FINISHED = st.lists(st.builds(candidate, WIDTHS, SCORES, epochs=st.integers(0, 9)), max_size=8)


@given(finished=FINISHED, widths=WIDTHS, higher=st.booleans())
def test_the_parent_by_brute_force(
    finished: list[Candidate], widths: dict[str, int], higher: bool
) -> None:
    sign = 1 if higher else -1

    def beaten(c: Candidate) -> bool:
        return any(
            o.score.params <= c.score.params
            and sign * o.score.valid >= sign * c.score.valid
            and (o.score.params, o.score.valid) != (c.score.params, c.score.valid)
            for o in finished
        )

    fit = [
        c for c in finished if not beaten(c) and all(c.plan.widths[n] >= widths[n] for n in widths)
    ]
    parent = choose_parent(front_of(finished, higher_is_better=higher), widths)
    if not fit:
        assert parent is None
    else:
        assert parent is not None
        assert covers(parent.plan.widths, widths)
        assert not beaten(parent)
        least = min(c.params for c in fit)
        near = [c for c in fit if c.params <= NEAR * least]
        most = max(c.epochs for c in near)
        trained = [c for c in near if c.epochs * MUCH_LESS >= most]
        assert parent in trained
        assert parent.params == min(c.params for c in trained)


def test_the_nearest_on_the_front() -> None:
    wide = candidate({"a": 4, "b": 4}, 0.9, "wide")
    near = candidate({"a": 3, "b": 2}, 0.7, "near")
    bad = candidate({"a": 3, "b": 1}, 0.1, "bad")
    small = candidate({"a": 1, "b": 1}, 0.5, "small")
    finished = [small, wide, bad, near]

    def parent(a: int, b: int) -> str | None:
        front = front_of(finished, higher_is_better=True)
        found = choose_parent(front, {"a": a, "b": b})
        return found and found.name

    assert parent(1, 1) == "small"
    assert parent(2, 1) == "near"  # bad fits more tightly, but small beats it
    assert parent(2, 3) == "wide"
    assert parent(4, 4) == "wide"
    assert choose_parent([], {"a": 1, "b": 1}) is None
    assert choose_parent([small], {"a": 2, "b": 1}) is None


def test_of_the_near_ones_none_that_is_much_less_trained() -> None:
    scout = candidate({"a": 3, "b": 2}, 0.7, "scout", epochs=1)
    link = candidate({"a": 3, "b": 4}, 0.8, "link", epochs=5)
    far = candidate({"a": 9, "b": 9}, 0.9, "far", epochs=50)
    longer = candidate({"a": 3, "b": 3}, 0.75, "longer", epochs=3)
    assert choose_parent([scout, link, far], {"a": 3, "b": 1}) is link
    assert choose_parent([scout, link, far], {"a": 3, "b": 2}) is link
    assert choose_parent([longer, link, far], {"a": 3, "b": 3}) is longer  # trained on
    assert choose_parent([scout, far], {"a": 3, "b": 1}) is scout


def test_covering_is_everywhere() -> None:
    assert covers({"a": 2, "b": 2}, {"a": 2, "b": 1})
    assert not covers({"a": 2, "b": 2}, {"a": 1, "b": 3})


def test_a_candidate_survives_json() -> None:
    one = candidate({"a": 3, "b": 1}, 0.5)
    timed = replace(one, score=replace(one.score, latency=0.25, latency_spread=0.125))
    for each in (one, timed):
        assert Candidate.from_json(json.loads(json.dumps(each.to_json()))) == each


def test_a_candidate_from_before_latency_can_be_read() -> None:
    one = candidate({"a": 3, "b": 1}, 0.5)
    value = json.loads(json.dumps(one.to_json()))
    for name in ("latency", "latency_spread"):
        del value["score"][name]
    assert Candidate.from_json(value) == one
