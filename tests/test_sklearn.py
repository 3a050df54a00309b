"""The estimators behave as scikit-learn's do, and find small networks."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from autoprune.sklearn import PrunedClassifier, PrunedRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

QUICK: dict[str, Any] = {"budget": 2, "dense_epochs": 40, "epochs": 2, "final_epochs": 0}


def expected_failures(estimator: Any) -> dict[str, str]:
    return {}


@parametrize_with_checks(
    [PrunedClassifier(**QUICK), PrunedRegressor(**QUICK)], expected_failed_checks=expected_failures
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)
