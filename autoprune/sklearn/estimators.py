"""The estimators: parameters in, data checked by scikit-learn's rules, a small network out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

if TYPE_CHECKING:
    import optuna

    from autoprune.pruning.plan import Plan
    from autoprune.results.result import Model
    from autoprune.sklearn.fitting import Order

SELECT = ("smallest", "knee", "best")
STUDY_OWN = ("name", "model", "example", "task", "final_epochs", "seed")
SEARCH_OWN = (
    "budget", "fresh", "join", "out", "reporter", "seed", "storage", "study", "tracking_uri",
    "workers",
)  # fmt: skip
"""What `study_params` and `search_params` may not hold: other parameters say it."""
COUNT = Interval(Integral, 0, None, closed="left")


class _Pruned(BaseEstimator):  # type: ignore[misc]
    """What both estimators have in common."""

    dense_n_params_: int
    dense_score_: float
    feature_names_in_: NDArray[Any]
    front_: tuple[Model, ...]
    module_: Any
    n_features_in_: int
    n_params_: int
    plan_: Plan
    selected_: Model
    study_: optuna.Study

    kept: ClassVar[tuple[str, ...]] = ()
    """Attributes of a fitted estimator that `save` writes, beside those of both."""
    _parameter_constraints: ClassVar[Mapping[str, list[Any]]] = {
        "module_params": [Mapping, None],
        "budget": [Interval(Integral, 1, None, closed="left")],
        "select": [StrOptions(set(SELECT))],
        "max_loss": [Interval(Real, 0, None, closed="left"), None],
        "scoring": [str, None],
        "dense_epochs": [COUNT, None],
        "epochs": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "final_epochs": [COUNT, None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
        "n_jobs": [
            Interval(Integral, None, -1, closed="right"),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
        "verbose": ["verbose"],
        "out": [str, Path, None],
        "tracking_uri": [str, None],
        "study_params": [Mapping, None],
        "search_params": [Mapping, None],
    }
    """As scikit-learn checks them; `_check_parameters` has the rules beyond that."""

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

    # --- fitting ----------------------------------------------------------------------------

    def _search(
        self,
        inputs: NDArray[np.float32],
        targets: NDArray[Any],
        weights: NDArray[np.float32] | None,
        *,
        classes: int | None,
    ) -> Self:
        from autoprune.sklearn.data import Data
        from autoprune.sklearn.fitting import found_by

        if weights is not None and self.scoring is not None and not _weighs(self.scoring):
            raise self._broken("scoring", "a scorer that takes sample weights, where there are any")
        data = Data(inputs=inputs, targets=targets, classes=classes, weights=weights)
        found = found_by(self._order(), data)
        self.front_ = found.front
        self.study_ = found.study
        self.module_ = found.network
        self.selected_ = found.chosen
        self.plan_ = found.plan
        self.n_params_ = found.chosen.params
        self.dense_n_params_ = found.dense.params
        self.dense_score_ = found.dense.valid
        self._built_with = found.built_with
        self._zeroed = found.zeroed
        return self

    def _order(self) -> Order:
        from autoprune.sklearn.fitting import Order

        drawn = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        own: dict[str, Any] = {"seed": int(drawn), "workers": _workers(self.n_jobs)}
        asked = {f.name for f in fields(Order)} - set(own)
        return Order(**own, **{name: _native(getattr(self, name)) for name in asked})

    def _check_parameters(self) -> None:
        """Raise `ValueError` for a parameter that breaks its rule, as scikit-learn words it."""
        self._validate_params()
        if self.scoring is not None and self.scoring not in get_scorer_names():
            raise self._broken("scoring", "None or the name of a scikit-learn scorer")
        ends = _native(self.epochs)
        if isinstance(ends, tuple) and not (
            len(ends) == 2 and all(isinstance(end, int) for end in ends) and 1 <= ends[0] < ends[1]
        ):
            raise self._broken("epochs", "None, an int, or (fewest, most) with 1 <= fewest < most")
        for name, own in (("study_params", STUDY_OWN), ("search_params", SEARCH_OWN)):
            if set(own) & set(getattr(self, name) or {}):
                raise self._broken(name, f"without {', '.join(map(repr, own))}")

    def _broken(self, name: str, rule: str) -> ValueError:
        return ValueError(
            f"The {name!r} parameter of {type(self).__name__} must be {rule}. "
            f"Got {getattr(self, name)!r} instead."
        )

    def _checked(self, *data: ArrayLike, **rules: Any) -> Any:
        """Return the data as scikit-learn checks them, inputs in the networks' precision."""
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what is too large is refused in a moment
            return validate_data(self, *data, dtype=np.float32, **rules)

    def _answers(self, X: ArrayLike) -> NDArray[Any]:
        """Return what the chosen network says of `X`, once that is checked."""
        check_is_fitted(self)
        inputs = self._checked(X, reset=False)
        from autoprune.sklearn.saving import OnnxNetwork

        if isinstance(self.module_, OnnxNetwork):
            return self.module_.answers(inputs)
        from autoprune.sklearn.networks import answers

        return answers(self.module_, inputs)

    # --- files ------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the fitted estimator to a new folder, without pickle.

        The network is there as safetensors with its plan, as `torch.export` program and as ONNX,
        each of which was read again and compared; ``estimator.json`` says the rest. `study_` stays
        behind, and so do `out`, `tracking_uri`, and parameters that JSON cannot hold, such as a
        module.

        Parameters
        ----------
        folder
            Is created; one that is there must be empty.

        Raises
        ------
        AutopruneError
            If the folder holds something, or the network cannot be written.
        """
        check_is_fitted(self)
        from autoprune.sklearn.saving import save

        save(self, Path(folder), kept=self.kept)

    @classmethod
    def load(cls, folder: str | Path, *, module: Any = None) -> Self:
        """Read an estimator that `save` wrote; no code is run that comes from the folder.

        Parameters
        ----------
        folder
            Where it was saved.
        module
            What the estimator was given as `module`, if anything: then `module_` is that again,
            made smaller. Entries of `module_params` that JSON cannot hold are bound to it by
            `functools.partial`. Without it, the ONNX file answers.

        Raises
        ------
        AutopruneError
            If there is none of this class, its files were altered, or `module` is another than
            the estimator was fitted with.
        """
        from autoprune.sklearn.saving import load

        return load(cls, Path(folder), module=module, kept=cls.kept)


class PrunedClassifier(ClassifierMixin, _Pruned):  # type: ignore[misc]
    """A classifier that trains a network, and searches for a much smaller one that is as good.

    Parameters
    ----------
    module
        What is pruned. None is a multi-layer perceptron that suits the data; it standardises its
        inputs. A function (or class) builds the network; of its arguments, ``n_features`` and
        ``n_outputs`` are given if it has them. A `torch.nn.Module` is taken as trained, and so is
        a skorch net in a ``FrozenEstimator``, or a fitted one; one that is not fitted trains the
        dense network in its own way. The network reads float32, [samples, features], and answers
        with a logit for each class (or with one, if there are two classes).
    module_params
        What else the function is called with. The default network takes ``hidden``, the neurons of
        each hidden layer, and ``dropout``.
    budget
        Trials of the search: how many smaller networks are tried.
    select
        Which network is kept: ``smallest`` has the fewest parameters of those that lose at most
        `max_loss`, ``knee`` is the one below which a smaller one begins to cost much, ``best`` has
        the best validation score. The dense one is kept if all lose more than `max_loss`.
    max_loss
        Points of the validation score that a network may lose against the dense one: 0.01 of a
        score that is a share, such as accuracy, a hundredth of any other. By default 1 for
        ``smallest``, and no limit for the others.
    scoring
        Name of the scikit-learn scorer that networks are judged by in the search. By default
        accuracy, or r2.
    dense_epochs
        Epochs of the dense network's training. By default some 600 steps for one that is built
        here, and none for one that is trained.
    epochs
        Epochs of a trial, a number or (fewest, most). By default a quarter of, up to as many as
        the dense network's.
    final_epochs
        Epochs that each network on the front gets at the end; as many as the dense one's by
        default.
    validation_fraction
        Share of the training data that networks are judged by, and not trained on; classes are
        in it by their shares.
    random_state
        Fixes all that is drawn.
    n_jobs
        Trials at once, as joblib counts them: None is 1, unless ``joblib.parallel_config`` says
        otherwise, and -1 is one worker process a core. One runs them in this process, one after the
        other.
    verbose
        Whether to say, on standard error, how far the search has come.
    out
        Folder that keeps all that the search leaves. The same fit to the same folder goes on where
        an earlier one stopped. By default there is a temporary one, deleted after the fit.
    tracking_uri
        Where MLflow is told of the search; by default nowhere.
    study_params, search_params
        Other arguments of `autoprune.PruningStudy` and `autoprune.search`, by name. Names of
        layers begin with ``body.`` where something was put around the network, as `module_` shows.

    Attributes
    ----------
    classes_ : ndarray
        The class labels, sorted.
    n_params_ : int
        Parameters of the network that was kept; ``dense_n_params_`` of the dense one.
    dense_score_ : float
        Validation score of the dense network.
    front_ : tuple of `Model`
        The networks that no other beats in size and validation score, by size; ``selected_`` is
        what was kept of them.
    module_ : torch.nn.Module
        The network that was kept, on the CPU. ``plan_`` says what of the dense one it has.
    study_ : optuna.Study
        The trials, in memory.
    n_features_in_ : int
        Features seen in `fit`.
    feature_names_in_ : ndarray
        Their names, if they are all texts.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = PrunedClassifier(budget=3, random_state=0).fit(X, y)
    >>> model.n_params_ < model.dense_n_params_ / 2, model.score(X, y) > 0.9
    (True, True)
    """

    classes_: NDArray[Any]
    kept = ("classes_",)

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a network, search for smaller ones, and keep the one that is asked for.

        Parameters
        ----------
        X
            Numbers, [samples, features].
        y
            A class for each sample.
        sample_weight
            How much each sample counts, in training as well as in the validation score.
        """
        self._check_parameters()
        inputs, labels = self._checked(X, y)
        check_classification_targets(labels)
        labels = column_or_1d(labels, warn=True)
        inputs, labels, weights = _counting(inputs, labels, sample_weight)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the "
                f"data contains only one class: {self.classes_[0]!r}"
            )
        return self._search(inputs, codes.astype(np.int64), weights, classes=len(self.classes_))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most likely class of each sample, [samples]."""
        best = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return how likely each class is, [samples, classes], in the order of `classes_`."""
        return _probabilities(self._answers(X))


class PrunedRegressor(RegressorMixin, _Pruned):  # type: ignore[misc]
    """A regressor that trains a network, and searches for a much smaller one that is as good.

    Its parameters and attributes are those of `PrunedClassifier`, but for ``classes_``. The
    network answers with a number for each target. One that is built here learns standardised
    targets, and answers in their own units.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = PrunedRegressor(budget=3, epochs=20, random_state=0).fit(X, y)
    >>> model.n_params_ < model.dense_n_params_ / 2, model.score(X, y) > 0.3
    (True, True)
    """

    n_outputs_: int
    kept = ("n_outputs_",)

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a network, search for smaller ones, and keep the one that is asked for.

        Parameters
        ----------
        X
            Numbers, [samples, features].
        y
            Numbers, [samples] or [samples, targets].
        sample_weight
            How much each sample counts, in training as well as in the validation score.
        """
        self._check_parameters()
        inputs, targets = self._checked(X, y, multi_output=True, y_numeric=True)
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = column_or_1d(targets, warn=True)
        inputs, targets, weights = _counting(inputs, targets, sample_weight)
        self.n_outputs_ = 1 if targets.ndim == 1 else targets.shape[1]
        return self._search(inputs, targets.astype(np.float32), weights, classes=None)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the targets of each sample as the network sees them.

        Their shape is that of the targets in training, [samples] or [samples, targets].
        """
        found = self._answers(X).astype(np.float64)
        return found.reshape(-1) if self.n_outputs_ == 1 else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _counting(
    inputs: NDArray[Any], targets: NDArray[Any], sample_weight: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return the samples that count, and how much; None where all count the same."""
    if sample_weight is None:
        return inputs, targets, None
    weights = _check_sample_weight(
        sample_weight, inputs, dtype=np.float32, ensure_non_negative=True
    )
    counts = weights > 0
    if not counts.any():
        raise ValueError("At least one sample weight must be more than 0, but all are 0.")
    inputs, targets, weights = inputs[counts], targets[counts], weights[counts]
    return inputs, targets, None if np.ptp(weights) == 0 else weights


def _probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return class probabilities, [samples, classes], of logits or of the one logit of a yes.

    >>> _probabilities(np.array([[0.0], [50.0]])).round(3).tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    """
    exact = logits.astype(np.float64)
    if exact.ndim == 1 or exact.shape[1] == 1:
        yes = exact.reshape(-1)
        return np.stack([expit(-yes), expit(yes)], axis=1)
    return np.asarray(softmax(exact, axis=1))


def _workers(n_jobs: int | None) -> int:
    """Return how many worker processes `n_jobs` means: none, where it is one job."""
    jobs = int(effective_n_jobs(n_jobs))
    return 0 if jobs == 1 else jobs


def _native(value: Any) -> Any:
    """Return a parameter with Python's whole numbers for numpy's, alone or in a pair."""
    if isinstance(value, (tuple, list)):
        return tuple(_native(entry) for entry in value)
    return int(value) if isinstance(value, np.integer) else value


def _weighs(scoring: str) -> bool:
    """Return whether a scorer of scikit-learn's takes sample weights.

    >>> _weighs("accuracy"), _weighs("neg_max_error")
    (True, False)
    """
    return "sample_weight" in signature(get_scorer(scoring)._score_func).parameters
