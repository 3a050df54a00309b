import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from nets import NETS, build, grouped, kept_channels
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import restrict
from autoprune.pruning.plan import FineTune, Plan, fingerprint

PLAN = Plan(
    widths={"0": 3, "2": 1},
    criterion="taylor",
    finetune=FineTune(epochs=4, lr=0.01, batch_size=32, distill_weight=0.5, dropout=0.1),
    kept={"0": (1, 4, 7), "2": (0,)},
)


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, kept=None)])
def test_survives_json(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_from_before_there_was_muon_means_adamw() -> None:
    value = PLAN.to_json()
    del value["finetune"]["optimizer"]
    assert Plan.from_json(value) == PLAN
    assert PLAN.finetune.optimizer == "adamw"


def test_an_optimizer_that_is_none_is_refused() -> None:
    with pytest.raises(AutopruneError, match="Did you mean 'muon'"):
        FineTune(epochs=1, lr=0.1, optimizer="mion")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "`FineTune.epochs` must be a whole number of at least 0, but is -1"),
        ({"epochs": 2.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"lr": math.inf}, "`FineTune.lr` must be a finite number"),
        ({"lr": "fast"}, "but is 'fast'"),
        ({"lr": -0.1}, "at least 0"),
        ({"batch_size": 0}, "`FineTune.batch_size` must be a whole number of at least 1"),
        ({"weight_decay": math.nan}, "`FineTune.weight_decay` must be a finite number"),
        ({"distill_weight": 1.5}, "`FineTune.distill_weight` must be a number between 0 and 1"),
        ({"temperature": 0}, "`FineTune.temperature` must be a finite number of at least 0.001"),
        ({"dropout": 2}, "`FineTune.dropout` must be None or a number between 0 and 1"),
    ],
)
def test_bad_ways_to_train_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        FineTune(**{"epochs": 1, "lr": 0.1, **settings})


@given(kept=kept_channels(grouped("residual")))
def test_kept_channels_decide_the_widths(kept: dict[str, tuple[int, ...]]) -> None:
    plan = replace(PLAN, kept=None).with_kept(kept)
    assert plan.kept == kept
    assert plan.widths == {name: len(channels) for name, channels in kept.items()}
    assert plan.finetune is PLAN.finetune
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def without(name: str) -> dict[str, Any]:
    return {k: v for k, v in PLAN.to_json().items() if k != name}


@pytest.mark.parametrize(
    "value",
    [
        *(without(name) for name in ("widths", "criterion", "finetune", "kept")),
        PLAN.to_json() | {"widths": 3},
        PLAN.to_json() | {"widths": {"0": "many"}},
        PLAN.to_json() | {"finetune": {"epochs": 1, "lr": 0.1, "momentum": 0.9}},
        PLAN.to_json() | {"finetune": {"epochs": 1, "lr": 0.1, "optimizer": "sgd"}},
        PLAN.to_json() | {"kept": {"0": [None]}},
        [],
    ],
)
def test_what_is_no_plan_is_refused(value: Any) -> None:
    with pytest.raises(AutopruneError, match="Was the file altered"):
        Plan.from_json(value)


def test_a_plan_does_not_change() -> None:
    with pytest.raises(AttributeError):
        PLAN.criterion = "l1"  # type: ignore[misc]


def test_a_fingerprint_names_a_dense_model() -> None:
    prints = [fingerprint(grouped(name)) for name in NETS]
    assert len(set(prints)) == len(NETS)
    assert fingerprint(find_groups(*build("residual"))) == fingerprint(grouped("residual"))
    kept = {"0": (0, 1), "2": (0,)}
    assert fingerprint(restrict(grouped("mlp"), kept)) != fingerprint(grouped("mlp"))


def test_a_fingerprint_knows_what_may_be_cut() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    free = find_groups(model, torch.zeros(1, 4))
    assert fingerprint(free) != fingerprint(find_groups(model, torch.zeros(1, 4), keep=["0"]))
