"""The estimators: parameters in, data checked by scikit-learn's rules, a small network out."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

if TYPE_CHECKING:
    import optuna
    from torch import nn

    from autoprune.results.result import Model
    from autoprune.sklearn.fitting import Order

SELECT = ("knee", "smallest", "best")
STUDY_OWN = ("name", "model", "example", "task", "train", "final_epochs", "seed")
SEARCH_OWN = (
    "budget", "fresh", "join", "out", "reporter", "seed", "storage", "study", "tracking_uri",
    "workers",
)  # fmt: skip
"""What `study_params` and `search_params` may not hold: other parameters say it."""


class _Pruned(BaseEstimator):  # type: ignore[misc]
    """What both estimators have in common."""

    dense_score_: float
    dense_n_params_: int
    feature_names_in_: NDArray[Any]
    front_: tuple[Model, ...]
    module_: nn.Module
    n_features_in_: int
    n_params_: int
    selected_: Model
    study_: optuna.Study

    def __init__(
        self,
        module: Any = None,
        *,
        module_params: Mapping[str, Any] | None = None,
        budget: int = 20,
        select: str = "smallest",
        max_loss: float | None = None,
        scoring: str | None = None,
        dense_epochs: int | None = None,
        epochs: int | tuple[int, int] | None = None,
        final_epochs: int | None = None,
        validation_fraction: float = 0.2,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        out: str | Path | None = None,
        tracking_uri: str | None = None,
        study_params: Mapping[str, Any] | None = None,
        search_params: Mapping[str, Any] | None = None,
    ) -> None:
        self.module = module
        self.module_params = module_params
        self.budget = budget
        self.select = select
        self.max_loss = max_loss
        self.scoring = scoring
        self.dense_epochs = dense_epochs
        self.epochs = epochs
        self.final_epochs = final_epochs
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.out = out
        self.tracking_uri = tracking_uri
        self.study_params = study_params
        self.search_params = search_params

    def _search(
        self, inputs: NDArray[np.float32], targets: NDArray[Any], classes: int | None
    ) -> Self:
        from autoprune.sklearn.fitting import Data, found_by

        found = found_by(self._order(), Data(inputs=inputs, targets=targets, classes=classes))
        self.front_ = found.front
        self.study_ = found.study
        self.module_ = found.network
        self.selected_ = found.chosen
        self.n_params_ = found.chosen.params
        self.dense_n_params_ = found.dense.params
        self.dense_score_ = found.dense.valid
        return self

    def _order(self) -> Order:
        from autoprune.sklearn.fitting import Order

        random = check_random_state(self.random_state)
        return Order(
            module=self.module,
            module_params=dict(self.module_params or {}),
            budget=self.budget,
            select=self.select,
            max_loss=self.max_loss,
            scoring=self.scoring,
            dense_epochs=self.dense_epochs,
            epochs=self.epochs,
            final_epochs=self.final_epochs,
            validation_fraction=self.validation_fraction,
            seed=int(random.randint(np.iinfo(np.int32).max)),
            workers=_workers(self.n_jobs),
            verbose=bool(self.verbose),
            out=self.out,
            tracking_uri=self.tracking_uri,
            study_params=dict(self.study_params or {}),
            search_params=dict(self.search_params or {}),
        )

    def _check_parameters(self) -> None:
        """Raise `ValueError` for a parameter that breaks its rule, as scikit-learn words it."""
        self._check("select", self.select in SELECT, f"one of {', '.join(map(repr, SELECT))}")
        self._check("budget", _is_whole(self.budget, 1), "an int of at least 1")
        self._check(
            "validation_fraction",
            _is_number(self.validation_fraction) and 0 < self.validation_fraction < 1,
            "a float between 0 and 1",
        )
        self._check(
            "n_jobs",
            self.n_jobs is None or (_is_whole(self.n_jobs, -np.inf) and self.n_jobs != 0),
            "None or an int other than 0",
        )
        for name in ("dense_epochs", "final_epochs"):
            value = getattr(self, name)
            self._check(name, value is None or _is_whole(value, 0), "None or an int of at least 0")
        loss = self.max_loss
        good = loss is None or (_is_number(loss) and loss >= 0)
        self._check("max_loss", good, "None or a number of points of at least 0")
        for name, own in (("study_params", STUDY_OWN), ("search_params", SEARCH_OWN)):
            taken = sorted(set(own) & set(getattr(self, name) or {}))
            self._check(name, not taken, f"without {', '.join(map(repr, own))}")

    def _check(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise ValueError(
                f"The {name!r} parameter of {type(self).__name__} must be {rule}. "
                f"Got {getattr(self, name)!r} instead."
            )

    def _answers(self, X: ArrayLike) -> NDArray[Any]:
        """Return what the chosen network says of checked `X`."""
        check_is_fitted(self)
        inputs = validate_data(self, X, dtype=np.float32, reset=False)
        from autoprune.sklearn.networks import answers

        return answers(self.module_, inputs)


class PrunedClassifier(ClassifierMixin, _Pruned):  # type: ignore[misc]
    """A classifier."""

    classes_: NDArray[Any]

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a network, search for smaller ones, and keep the one that is asked for."""
        self._check_parameters()
        inputs, labels = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(column_or_1d(labels, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the "
                f"data contains only one class: {self.classes_[0]!r}"
            )
        return self._search(inputs, numbers.astype(np.int64), classes=len(self.classes_))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most likely class of each sample, [samples]."""
        best = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return how likely each class is, [samples, classes], in the order of `classes_`."""
        logits = self._answers(X)
        from autoprune.sklearn.networks import probabilities

        return probabilities(logits)


class PrunedRegressor(RegressorMixin, _Pruned):  # type: ignore[misc]
    """A regressor."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a network, search for smaller ones, and keep the one that is asked for."""
        self._check_parameters()
        inputs, targets = validate_data(
            self, X, y, dtype=np.float32, multi_output=True, y_numeric=True
        )
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = column_or_1d(targets, warn=True)
        self.n_outputs_ = 1 if targets.ndim == 1 else targets.shape[1]
        return self._search(inputs, targets, classes=None)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the targets of each sample as the network sees them.

        Their shape is that of the targets in training, [samples] or [samples, targets].
        """
        found = self._answers(X).astype(np.float64)
        return found.reshape(-1) if self.n_outputs_ == 1 else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


def _workers(n_jobs: int | None) -> int:
    """Return how many worker processes `n_jobs` means: none, where it is one job."""
    if n_jobs is None or n_jobs == 1:
        return 0
    if n_jobs < 0:
        return max(len(os.sched_getaffinity(0)) + 1 + n_jobs, 1)
    return n_jobs


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any, least: float) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least
