"""Scorers by name: scikit-learn's, applied to a network's outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import AutopruneError, unknown

REGRESSION_PARTS = ("error", "deviance", "r2", "explained_variance", "d2_absolute", "d2_pinball")
Scorer = Callable[[Any, Any], float]
"""Takes outputs and targets of a whole split and returns the score."""


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of samples whose largest output is the target; one output means logit > 0."""
    if outputs.dim() == 1 or outputs.shape[1] == 1:
        guesses = (outputs.reshape(-1) > 0).long()
        return float((guesses == targets.reshape(-1).long()).float().mean())
    guesses = outputs.argmax(1)
    truth = targets.argmax(1) if targets.dim() == outputs.dim() else targets
    return float((guesses == truth).float().mean())


def binary_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of labels for which logit > 0 says the truth; several labels a sample are fine."""
    truth = targets.reshape(outputs.shape) > 0.5
    return float(((outputs > 0) == truth).float().mean())


def get_scorer(name: str, *, classifies: bool | None = None) -> Scorer:
    """Return ``accuracy``, or any of scikit-learn's scorers (all of which want to be high).

    `classifies` says whether targets are classes; without it, the scorer's name and the targets'
    type do.

    Raises
    ------
    AutopruneError
        If scikit-learn has no scorer of that name.
    """
    if name == "accuracy":
        return accuracy
    return _Named(name, classifies)


class _Named:
    """One of scikit-learn's scorers, applied to a network's outputs, [samples, ...]."""

    def __init__(self, name: str, classifies: bool | None) -> None:
        from sklearn.metrics import get_scorer as sklearn_scorer
        from sklearn.metrics import get_scorer_names

        if name not in get_scorer_names():
            raise unknown("scorer", name, get_scorer_names())
        self._scorer = sklearn_scorer(name)
        self._name = name
        self._classifies = classifies

    def __call__(self, outputs: Any, targets: Any, weights: Tensor | None = None) -> float:
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            raise AutopruneError(
                f"Scorer {self._name!r} needs a model that returns one tensor; "
                f"pass a function `scorer(outputs, targets)` instead."
            )
        truth = targets.numpy()
        discrete = self._classifies
        if discrete is None:
            measures_regression = any(part in self._name for part in REGRESSION_PARTS)
            discrete = not measures_regression and np.issubdtype(truth.dtype, np.integer)
        if discrete:
            truth = truth.astype(np.int64)
        estimator = _answers(outputs, truth, discrete=discrete)
        options = {} if weights is None else {"sample_weight": weights.numpy()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(self._scorer(estimator, np.zeros((len(truth), 1)), truth, **options))


def get_weighted_scorer(
    name: str, *, classifies: bool | None = None
) -> Callable[[Tensor, Tensor, Tensor], float]:
    """Return one of scikit-learn's scorers that takes the samples' weights, [samples], as well.

    >>> score = get_weighted_scorer("accuracy", classifies=True)
    >>> outputs, targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    >>> score(outputs, targets, torch.tensor([3.0, 1.0]))
    0.75
    """
    return _Named(name, classifies)


def _answers(outputs: Tensor, truth: np.ndarray[Any, Any], *, discrete: bool) -> Any:
    """Wrap outputs as the fitted estimator that a scikit-learn scorer wants to ask."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    class Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict(self, X: Any) -> Any:  # noqa: N803
            if outputs.numel() != truth.size:
                raise AutopruneError(
                    f"A regression scorer needs one output per target, but there are "
                    f"{tuple(outputs.shape)} outputs for {truth.shape} targets. Set `scorer`."
                )
            return outputs.reshape(truth.shape).numpy()

    class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        classes_ = np.arange(max(outputs.shape[-1] if outputs.dim() > 1 else 2, 2))

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict(self, X: Any) -> Any:  # noqa: N803
            if outputs.dim() == 1 or outputs.shape[1] == 1:
                return (outputs.reshape(-1) > 0).long().numpy()
            return outputs.argmax(1).numpy()

        def predict_proba(self, X: Any) -> Any:  # noqa: N803
            if outputs.dim() == 1 or outputs.shape[1] == 1:
                positive = torch.sigmoid(outputs.reshape(-1))
                return torch.stack([1 - positive, positive], 1).numpy()
            return outputs.double().softmax(1).numpy()

    return Classifier() if discrete else Regressor()
