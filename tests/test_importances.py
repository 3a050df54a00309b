"""What importances say of a search's parameters."""

from __future__ import annotations

import math
import random

import optuna
import pytest

from autoprune.results.importances import FEWEST, importances
from autoprune.searching.attributes import PARAMS, VALID

SPACE = {
    "sparsity/a": optuna.distributions.FloatDistribution(0.0, 0.99),
    "lr": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
    "criterion": optuna.distributions.CategoricalDistribution(("l1", "l2", "taylor")),
}


def searched(trials: int, *, sign: float = 1.0) -> optuna.Study:
    """Return a study in which sparsity makes models small, and worse for it; lr makes them good."""
    rng = random.Random(0)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for _ in range(trials):
        params = {
            "sparsity/a": rng.uniform(0.0, 0.99),
            "lr": 10 ** rng.uniform(-3, -1),
            "criterion": rng.choice(["l1", "l2", "taylor"]),
        }
        size = round(10_000 * (1 - params["sparsity/a"]))
        valid = sign * (math.log10(size) - 0.1 * abs(math.log10(params["lr"]) + 2))
        study.add_trial(
            optuna.create_trial(
                params=params,
                distributions=SPACE,
                values=[valid, size],
                user_attrs={VALID: valid, PARAMS: size},
            )
        )
    return study


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_size_and_score_are_told_apart(sign: float) -> None:
    found = importances(searched(120, sign=sign), higher_is_better=sign > 0)
    assert found is not None
    assert max(found.size, key=lambda name: found.size[name]) == "sparsity/a"
    assert found.size["sparsity/a"] > 0.8
    assert max(found.score, key=lambda name: found.score[name]) == "lr"
    assert found.score["lr"] > 0.6
    assert sum(found.score.values()) == pytest.approx(1.0)
    assert found.trials == 120
    assert 60 < found.compared <= 120


def test_a_few_trials_tell_nothing() -> None:
    assert importances(searched(FEWEST - 1)) is None


def test_stopped_and_unscored_trials_are_left_out() -> None:
    study = searched(12)
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.PRUNED))
    study.add_trial(
        optuna.create_trial(
            params={"sparsity/a": 0.1, "lr": 0.01, "criterion": "l1"},
            distributions=SPACE,
            values=[1.0, 1.0],
        )
    )
    found = importances(study)
    assert found is not None
    assert found.trials == 12
