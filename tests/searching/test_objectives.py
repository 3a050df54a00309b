"""Objectives: which names there are, and what a score says of each cost."""

from __future__ import annotations

import math

import pytest

from autoprune import AutopruneError
from autoprune.searching.candidate import Score
from autoprune.searching.objectives import COSTS, cost_of, costs_among

SCORE = Score(valid=0.5, params=10, macs=20, size_bytes=30, memory=40, latency=0.25)


def test_every_cost_has_a_field() -> None:
    assert {name: cost_of(SCORE, name) for name in COSTS} == {
        "params": 10,
        "macs": 20,
        "size": 30,
        "memory": 40,
        "latency": 0.25,
    }


def test_what_was_not_measured_beats_nothing() -> None:
    assert cost_of(Score(valid=0.5, params=10, macs=20, size_bytes=30), "latency") == math.inf


@pytest.mark.parametrize("score", ["accuracy", "score", "f1"])
def test_the_score_has_three_names_and_order_does_not_matter(score: str) -> None:
    assert costs_among(["params", score], metric="f1") == ("params",)
    assert costs_among(["latency", score, "params"], metric="f1") == ("params", "latency")
    assert costs_among([score, "size", "macs"], metric="f1") == ("macs", "size")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["accuracy", "latancy"], r"Unknown objective 'latancy'.*Did you mean 'latency'"),
        (["accuracy"], r"at least one of params, macs, size, memory, latency.*but is accuracy"),
        (["params", "macs"], r"must be the score \(accuracy or f1 or score\)"),
        ([], "but is empty"),
        (["accuracy", "f1", "params"], "each once"),
        (["accuracy", "params", "params"], "each once, but is accuracy,params,params"),
    ],
)
def test_bad_objectives_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        costs_among(names, metric="f1")


def test_a_metric_named_as_a_cost_leaves_the_cost_its_name() -> None:
    assert costs_among(["score", "size"], metric="size") == ("size",)
