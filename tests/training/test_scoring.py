from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from autoprune.errors import AutopruneError
from autoprune.training.scoring import get_scorer

TRUTH = torch.arange(40) % 3
LOGITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
BINARY = (torch.arange(40) % 3 == 0).long()
LOGIT = torch.randn(40, 1, generator=torch.Generator().manual_seed(2)) + BINARY[:, None]
NUMBERS = LOGIT[:, 0] + 0.1


def probabilities() -> Any:
    return LOGITS.double().softmax(1).numpy()


MULTICLASS: dict[str, Callable[[], float]] = {
    "accuracy": lambda: metrics.accuracy_score(TRUTH, LOGITS.argmax(1)),
    "balanced_accuracy": lambda: metrics.balanced_accuracy_score(TRUTH, LOGITS.argmax(1)),
    "f1_macro": lambda: metrics.f1_score(TRUTH, LOGITS.argmax(1), average="macro"),
    "roc_auc_ovr": lambda: metrics.roc_auc_score(TRUTH, probabilities(), multi_class="ovr"),
    "neg_log_loss": lambda: -metrics.log_loss(TRUTH, probabilities()),
}
ONE_LOGIT: dict[str, Callable[[], float]] = {
    "accuracy": lambda: metrics.accuracy_score(BINARY, LOGIT[:, 0] > 0),
    "f1": lambda: metrics.f1_score(BINARY, LOGIT[:, 0] > 0),
    "f1_macro": lambda: metrics.f1_score(BINARY, LOGIT[:, 0] > 0, average="macro"),
    "roc_auc": lambda: metrics.roc_auc_score(BINARY, LOGIT[:, 0]),
    "average_precision": lambda: metrics.average_precision_score(BINARY, LOGIT[:, 0]),
}
REGRESSION: dict[str, Callable[[], float]] = {
    "r2": lambda: metrics.r2_score(NUMBERS, LOGIT[:, 0]),
    "neg_mean_absolute_error": lambda: -0.1,
    "neg_root_mean_squared_error": lambda: -0.1,
}


@pytest.mark.parametrize("name", MULTICLASS)
def test_multiclass(name: str) -> None:
    assert get_scorer(name)(LOGITS, TRUTH) == pytest.approx(MULTICLASS[name](), rel=1e-5)


@pytest.mark.parametrize("outputs", [LOGIT, LOGIT[:, 0]])
@pytest.mark.parametrize("name", ONE_LOGIT)
def test_one_logit(name: str, outputs: Tensor) -> None:
    assert get_scorer(name)(outputs, BINARY) == pytest.approx(ONE_LOGIT[name](), rel=1e-5)


def test_two_logits_are_binary() -> None:
    outputs = torch.cat([-LOGIT / 2, LOGIT / 2], 1)
    expected = metrics.roc_auc_score(BINARY, LOGIT[:, 0])
    assert get_scorer("roc_auc")(outputs, BINARY) == pytest.approx(expected)


@pytest.mark.parametrize("targets", [NUMBERS, NUMBERS[:, None]])
@pytest.mark.parametrize("name", REGRESSION)
def test_regression(name: str, targets: Tensor) -> None:
    assert get_scorer(name)(LOGIT, targets) == pytest.approx(REGRESSION[name](), rel=1e-5)


def test_accuracy_of_one_hot_targets_and_pixels() -> None:
    accuracy = get_scorer("accuracy")
    assert accuracy(LOGITS, torch.eye(3)[TRUTH]) == accuracy(LOGITS, TRUTH)
    pixels, truth = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    expected = np.mean(pixels.numpy().argmax(1) == truth.numpy())
    assert accuracy(pixels, truth) == pytest.approx(expected)


def test_several_outputs_need_a_function() -> None:
    with pytest.raises(AutopruneError, match="'r2' needs a model that returns one tensor"):
        get_scorer("r2")((LOGIT, LOGIT), NUMBERS)


def test_unknown_scorers_are_refused() -> None:
    with pytest.raises(AutopruneError, match="Did you mean 'roc_auc'"):
        get_scorer("roc_acu")
