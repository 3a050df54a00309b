"""The estimators behave as scikit-learn's do, and keep a small network."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import polars as pl
import pytest
import torch
from helpers import environment
from joblib import parallel_config
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from autoprune import run
from autoprune.errors import AutopruneError
from autoprune.results.result import Model, SearchResult
from autoprune.sklearn import PrunedClassifier, PrunedRegressor
from autoprune.sklearn.data import Data, split
from autoprune.sklearn.estimators import _workers
from autoprune.sklearn.fitting import choice, task_of
from autoprune.sklearn.networks import Moments, Network, answers
from autoprune.sklearn.saving import ABOUT, OnnxNetwork
from autoprune.sklearn.skorched import module_of
from autoprune.sklearn.tasks import RegressionTask, WeightedTask
from autoprune.training.supervised import SupervisedTask

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # ONNX export's
]

CHECKED: dict[str, Any] = {"budget": 2, "dense_epochs": 40, "epochs": 2, "final_epochs": 0}
QUICK = CHECKED | {"epochs": 4, "random_state": 0}
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

# --- scikit-learn's own checks -------------------------------------------------------------------


def expected_failures(estimator: Any) -> dict[str, str]:
    return {
        "check_sample_weight_equivalence_on_dense_data": "which samples validate, and which make a "
        "batch, is drawn sample by sample: one of weight 2 is not where the same one twice would be"
    }


@parametrize_with_checks(
    [PrunedClassifier(**CHECKED), PrunedRegressor(**CHECKED)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learns_own_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


# --- in scikit-learn's company -------------------------------------------------------------------


def some(data: Arrays, count: int) -> Arrays:
    """Return some samples of a data set, in an order of no meaning."""
    order = np.random.default_rng(0).permutation(len(data[0]))[:count]
    return data[0][order], data[1][order]


SETS = {
    "digits": (load_digits, PrunedClassifier, 0.75),
    "breast cancer": (load_breast_cancer, PrunedClassifier, 0.85),
    "diabetes": (load_diabetes, PrunedRegressor, 0.2),
}


@pytest.mark.parametrize("name", SETS)
def test_a_pipeline_is_cross_validated_and_tuned(name: str) -> None:
    load, kind, least = SETS[name]
    X, y = some(load(return_X_y=True), 360)
    pipeline = Pipeline([("scale", StandardScaler()), ("net", kind(**QUICK))])
    scores = cross_val_score(pipeline, X, y, cv=2, error_score="raise")
    assert min(scores) > least
    grid = {"net__select": ["best", "smallest"]}
    tuned = GridSearchCV(pipeline, grid, cv=2, error_score="raise", refit=False).fit(X, y)
    assert len(tuned.cv_results_["params"]) == 2
    assert tuned.best_score_ > least


@pytest.fixture(scope="module")
def cancer() -> Arrays:
    return some(load_breast_cancer(return_X_y=True), 200)


@pytest.fixture(scope="module")
def fitted(cancer: Arrays) -> PrunedClassifier:
    """A classifier whose classes are texts."""
    X, y = cancer
    return PrunedClassifier(**QUICK, select="best").fit(X, np.array(["bad", "good"])[y])


def test_what_a_fit_leaves(fitted: PrunedClassifier, cancer: Arrays) -> None:
    assert fitted.n_features_in_ == 30
    assert fitted.classes_.tolist() == ["bad", "good"]
    assert fitted.n_params_ == sum(p.numel() for p in fitted.module_.parameters())
    assert fitted.n_params_ == fitted.selected_.params < fitted.dense_n_params_
    assert fitted.selected_ == max(fitted.front_, key=lambda m: (m.valid, -m.params))
    assert [m.params for m in fitted.front_] == sorted(m.params for m in fitted.front_)
    assert 0.8 < fitted.dense_score_ <= 1
    assert isinstance(fitted.study_, optuna.Study)
    assert len(fitted.study_.trials) == CHECKED["budget"]
    X, _ = cancer
    chances = fitted.predict_proba(X)
    assert chances.shape == (len(X), 2)
    assert np.allclose(chances.sum(1), 1)
    assert (fitted.predict(X) == fitted.classes_[chances.argmax(1)]).all()


def test_the_same_random_state_is_the_same_fit_and_copies_answer_alike(
    fitted: PrunedClassifier, cancer: Arrays
) -> None:
    X, y = cancer
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    again = clone(fitted).fit(X, np.array(["bad", "good"])[y])
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == torch.get_num_threads()
    expected = fitted.predict_proba(X)
    for copied in (again, copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert (copied.predict_proba(X) == expected).all()
    assert [t.params for t in again.study_.trials] == [t.params for t in fitted.study_.trials]


def test_a_fit_leaves_no_files(
    cancer: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    PrunedClassifier(**QUICK).fit(*cancer)
    assert not list(tmp_path.iterdir())


def test_a_fit_is_quiet_unless_it_is_asked(
    cancer: Arrays, capfd: pytest.CaptureFixture[str]
) -> None:
    PrunedClassifier(**QUICK).fit(*cancer)
    assert capfd.readouterr() == ("", "")
    PrunedClassifier(**QUICK, verbose=1).fit(*cancer)
    told = capfd.readouterr()
    assert told.out == ""
    assert "accuracy" in told.err
    assert "[2/2] t001 complete" in told.err


def test_importing_the_estimators_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from autoprune.sklearn import PrunedClassifier\n"
        "from sklearn.base import clone\n"
        "repr(clone(PrunedClassifier(budget=3).set_params(select='knee')))\n"
        "print([m for m in ('torch', 'optuna', 'mlflow', 'matplotlib') if m in sys.modules])\n"
    )
    assert python(code) == "[]"


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_have_names(frame: Any, cancer: Arrays) -> None:
    X, y = cancer[0][:60, :3], cancer[1][:60]
    table = frame({name: X[:, i] for i, name in enumerate("abc")})
    model = PrunedClassifier(**QUICK).fit(table, frame({"y": y})["y"])
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert (model.predict(table) == PrunedClassifier(**QUICK).fit(X, y).predict(X)).all()
    renamed = frame({name: X[:, i] for i, name in enumerate("abd")})
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(renamed)


def test_several_targets_are_regressed_at_once() -> None:
    X, y = some(load_diabetes(return_X_y=True), 200)
    both = np.stack([y, 1e4 - 50 * y], axis=1)
    model = PrunedRegressor(**QUICK, select="best").fit(X, both)
    found = model.predict(X)
    assert found.shape == both.shape
    assert abs(found.mean(0) - both.mean(0)).max() < both.std(0).max() / 2
    assert model.score(X, both) > 0.2


@pytest.mark.parametrize("weighted", [False, True])
def test_the_units_of_the_targets_make_no_difference(weighted: bool) -> None:
    """Powers of two, which change no digit."""
    X, y = some(load_diabetes(return_X_y=True), 150)
    targets = np.stack([y, X[:, 2]], axis=1)
    weights = np.arange(150) % 3 + 1 if weighted else None
    units = 2.0 ** np.array([-30, 10])
    plain = PrunedRegressor(**QUICK).fit(X, targets, sample_weight=weights)
    scaled = PrunedRegressor(**QUICK).fit(X, targets * units, sample_weight=weights)
    assert scaled.dense_score_ == plain.dense_score_ > 0.3
    assert (scaled.predict(X) / units == plain.predict(X)).all()


def test_a_task_of_numbers_knows_what_a_constant_answer_scores() -> None:
    rng = np.random.default_rng(0)
    part = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    found = RegressionTask(train=part, valid=part, scale=[1e-3]).yardstick(nn.Linear(3, 1), "valid")
    assert found is not None
    assert found.chance == pytest.approx(0, abs=1e-5)  # r2 of the mean


def bad_data() -> Iterator[Any]:
    X = np.random.default_rng(0).normal(size=(20, 3))
    y = np.arange(20) % 2
    gap = X.copy()
    gap[3, 1] = np.nan
    yield pytest.param(gap, y, "Input X contains NaN", id="NaN")
    yield pytest.param(np.where(np.isnan(gap), np.inf, X), y, "Input X contains inf", id="infinity")
    yield pytest.param(X, np.zeros(20), "contains only one class", id="one class")
    yield pytest.param(X.astype(str) + "x", y, "could not convert string", id="texts")
    yield pytest.param(X[:3], y[:3], r"3 sample\(s\) while a minimum of 4", id="a tiny set")
    yield pytest.param(X[:0], y[:0], r"0 sample\(s\)", id="an empty set")
    yield pytest.param(X, y[:10], "inconsistent numbers of samples", id="lengths")
    yield pytest.param(X, X[:, 0], "Unknown label type", id="numbers as classes")
    yield pytest.param(X[:, 0], y, "Expected 2D array", id="one dimension")
    yield pytest.param(X.reshape(5, 4, 3), y[:5], "dim 3", id="three dimensions")
    yield pytest.param(1e300 * X, y, "too large for dtype", id="beyond float32")


@pytest.mark.parametrize(("X", "y", "message"), list(bad_data()))
def test_bad_data_are_refused_in_scikit_learns_words(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrunedClassifier(**QUICK).fit(X, y)


def test_sparse_matrices_are_refused() -> None:
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        PrunedClassifier(**QUICK).fit(csr_matrix(np.eye(20)), np.arange(20) % 2)


def test_a_wrong_number_of_features_is_refused(fitted: PrunedClassifier, cancer: Arrays) -> None:
    with pytest.raises(ValueError, match="29 features, but PrunedClassifier is expecting 30"):
        fitted.predict(cancer[0][:, 1:])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"select": "largest"}, "'select' parameter .* a str among .*'knee'.* Got 'largest'"),
        ({"budget": 0}, r"'budget' parameter .* an int in the range \[1, inf\). Got 0"),
        ({"budget": 2.5}, "'budget' parameter"),
        ({"max_loss": -1}, "'max_loss' parameter"),
        ({"scoring": "acuracy"}, "'scoring' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
        ({"scoring": len}, "'scoring' parameter"),
        ({"n_jobs": 0}, "'n_jobs' parameter"),
        ({"epochs": 0}, "'epochs' parameter"),
        ({"epochs": "4"}, "'epochs' parameter"),
        ({"epochs": (4, 2)}, "'epochs' parameter .* 1 <= fewest < most. Got \\(4, 2\\)"),
        ({"epochs": (0, 2)}, "'epochs' parameter .* 1 <= fewest"),
        ({"epochs": [1, 2, 3]}, "'epochs' parameter .* \\(fewest, most\\)"),
        ({"epochs": (1.5, 2)}, "'epochs' parameter"),
        ({"module_params": "width"}, "'module_params' parameter"),
        ({"dense_epochs": -1}, "'dense_epochs' parameter"),
        ({"search_params": {"out": "x"}}, "'search_params' parameter .* without 'budget'"),
        ({"study_params": {"seed": 1}}, "'study_params' parameter"),
        ({"module": nn.Linear(3, 2), "module_params": {"bias": False}}, "'module_params'"),
        ({"module": lambda: nn.Linear(3, 5)}, r"shape \(2, 2\) .* each class, but .* \(2, 5\)"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match=message):
        PrunedClassifier(**(QUICK | parameters)).fit(X, np.arange(20) % 2)


def test_whole_numbers_may_be_numpys_as_a_grid_has_them(cancer: Arrays) -> None:
    X, y = cancer
    plain = QUICK | {"dense_epochs": 20, "epochs": (2, 4), "final_epochs": 1}
    low, high = np.array(plain["epochs"])
    numbers = {name: np.int64(plain[name]) for name in ("budget", "dense_epochs", "final_epochs")}
    expected = PrunedClassifier(**plain).fit(X, y)
    found = PrunedClassifier(**(plain | numbers), n_jobs=np.int64(1)).set_params(epochs=[low, high])
    assert (found.fit(X, y).predict_proba(X) == expected.predict_proba(X)).all()
    fixed = PrunedClassifier(**(plain | {"epochs": high})).fit(X, y)
    assert {t.user_attrs["epochs"] for t in fixed.study_.trials} == {4}


def test_jobs_are_counted_as_joblib_does() -> None:
    assert [_workers(jobs) for jobs in (None, 1, np.int64(3))] == [0, 0, 3]
    with parallel_config(n_jobs=2):
        assert [_workers(jobs) for jobs in (None, 1)] == [2, 0]


@pytest.mark.parametrize("counts", [(1, 9), (2, 2), (1, 1, 3), (40, 3)])
def test_every_class_is_trained_and_gives_its_share_to_validation(counts: tuple[int, ...]) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    data = Data(inputs=np.zeros((len(targets), 1)), targets=targets, classes=len(counts))
    for seed in range(5):
        train, valid = split(data, 0.2, seed=seed)
        assert sorted([*train, *valid]) == list(range(len(targets)))
        assert set(targets[train]) == set(targets)
        assert len(valid) == max(round(0.2 * len(targets)), 2)


# --- sample weights ------------------------------------------------------------------------------


def test_samples_without_weight_are_as_good_as_absent(cancer: Arrays) -> None:
    X, y = cancer[0][:100], cancer[1][:100]
    weights = np.arange(100) % 3 > 0
    weighed = PrunedClassifier(**QUICK).fit(X, y, sample_weight=5.0 * weights)
    without = PrunedClassifier(**QUICK).fit(X[weights], y[weights])
    assert (weighed.predict_proba(X) == without.predict_proba(X)).all()


@pytest.mark.parametrize("kind", [PrunedClassifier, PrunedRegressor])
def test_a_fit_follows_the_weights(kind: Any) -> None:
    """The same inputs have two targets: that of more weight is learnt, and judged by."""
    X = np.repeat(np.random.default_rng(0).normal(size=(60, 3)), 2, axis=0)
    y = np.tile([0, 1], 60)
    for heavy in (0, 1):
        model = kind(**QUICK, select="best")
        model.fit(X, y, sample_weight=np.where(y == heavy, 9.0, 1.0))
        assert abs(model.predict(X).mean() - heavy) < 0.3
        if kind is PrunedClassifier:
            assert model.dense_score_ > 0.7


REPEATS = np.array([3, 1, 1, 2, 1, 4])
"""A weight of 3 is as good as the same sample three times."""


@pytest.mark.parametrize("kind", ["cross_entropy", "bce_with_logits", "mse"])
def test_a_weight_counts_in_loss_distillation_and_score_as_the_sample_repeated_does(
    kind: str,
) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(6, 3)).astype(np.float32)
    targets, scoring, width = np.array([0, 1, 1, 0, 1, 0]), "neg_log_loss", 1
    scale = 1.0
    if kind == "cross_entropy":
        width = 2
    elif kind == "mse":
        targets, scoring, scale = rng.normal(size=6).astype(np.float32), "r2", 2.5
    weights = (REPEATS / REPEATS.mean()).astype(np.float32)
    weighed = (inputs, targets, weights)
    repeated = inputs.repeat(REPEATS, 0), targets.repeat(REPEATS, 0)
    task = WeightedTask(train=weighed, valid=weighed, loss=kind, scoring=scoring, scale=scale)
    if kind == "mse":
        plain: SupervisedTask = RegressionTask(train=repeated, valid=repeated, scale=[scale])
    else:
        plain = SupervisedTask(train=repeated, valid=repeated, loss=kind, scorer=scoring)
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, width), nn.Linear(3, width)
    if width == 1:
        student, teacher = (nn.Sequential(net, nn.Flatten(0)) for net in (student, teacher))
    found = _learnt(task, student, teacher, len(inputs))
    expected = _learnt(plain, student, teacher, REPEATS.sum())
    assert found == pytest.approx(expected, rel=1e-5)
    flat = SupervisedTask(train=weighed[:2], valid=weighed[:2], loss=kind, scorer=scoring)
    unweighted = _learnt(flat, student, teacher, len(inputs))
    assert all(a != pytest.approx(b, rel=0.01) for a, b in zip(found, unweighted, strict=True))


def _learnt(
    task: SupervisedTask, student: nn.Module, teacher: nn.Module, samples: int
) -> tuple[float, ...]:
    """Return loss, distance from the teacher and score over one batch of all samples."""
    (batch,) = task.batches("train", batch_size=int(samples), seed=0)
    loss, outputs = task.step(student, batch)
    _, wanted = task.step(teacher, batch)
    return loss.item(), task.distance(outputs, wanted, 2.0).item(), task.evaluate(student, "valid")


def test_weighted_moments_are_those_of_repeated_samples() -> None:
    columns = np.random.default_rng(0).normal([3.0, -20.0], [0.1, 50.0], size=(6, 2))
    columns = np.column_stack([columns, np.full(6, 7.0)])
    found = Moments.of(columns, REPEATS / 4)
    expected = Moments.of(columns.repeat(REPEATS, 0))
    assert found.mean == pytest.approx(expected.mean)
    assert found.scale == pytest.approx(expected.scale)
    assert not np.allclose(found.mean, Moments.of(columns).mean)
    assert found.scale[2] == 1


def test_only_the_weights_ratios_count() -> None:
    """Powers of two, which change no digit; the mean over the training samples is 1."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(12, 3)).astype(np.float32)
    targets, weights = rng.integers(2, size=12), rng.uniform(1, 3, 12).astype(np.float32)
    network = Network(build=lambda: nn.Linear(3, 2), trained=False)
    model = network.build()
    found = []
    for unit in (1, 64):
        data = Data(inputs=inputs, targets=targets, classes=2, weights=unit * weights)
        train, valid = data.part(np.arange(8)), data.part(np.arange(8, 12))
        task = task_of(network, train, valid, scoring=None)
        found.append(_learnt(task, model, network.build().requires_grad_(False), 8)[0])
        (batch,) = task.batches("train", batch_size=8, seed=None)
        assert batch.targets[1].mean().item() == pytest.approx(1)
        (batch,) = task.batches("valid", batch_size=4, seed=None)
        assert batch.targets[1].mean().item() == pytest.approx(
            weights[8:].mean() / weights[:8].mean()
        )
    assert found[0] == found[1]


def test_a_scorer_that_takes_no_weights_is_refused_with_them(
    cancer: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "search", None)  # before anything is trained
    model = PrunedRegressor(**QUICK, scoring="neg_max_error")
    with pytest.raises(ValueError, match=r"'scoring' parameter .* takes sample weights"):
        model.fit(*cancer, sample_weight=1 + np.arange(200))


@pytest.mark.long
def test_worker_processes_learn_by_weights_too(cancer: Arrays) -> None:
    X, y = cancer
    weights = np.arange(200) % 4 + 1
    alone = PrunedClassifier(**QUICK).fit(X, y, sample_weight=weights)
    model = PrunedClassifier(**QUICK, n_jobs=2).fit(X, y, sample_weight=weights)
    assert model.dense_score_ == pytest.approx(alone.dense_score_)
    assert model.dense_score_ != PrunedClassifier(**QUICK).fit(X, y).dense_score_


def test_weights_may_not_be_negative(cancer: Arrays) -> None:
    with pytest.raises(ValueError, match="Negative values"):
        PrunedClassifier(**QUICK).fit(*cancer, sample_weight=-np.ones(200))
    with pytest.raises(ValueError, match=r"all are 0|at least one non-zero"):
        PrunedClassifier(**QUICK).fit(*cancer, sample_weight=np.zeros(200))


# --- the choice ----------------------------------------------------------------------------------


def model(name: str, params: int, valid: float) -> Model:
    facts = {"trial": None, "macs": 0, "size_bytes": 0, "test": None, "path": ""}
    return Model(name=name, params=params, valid=valid, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("select", "max_loss", "name"),
    [
        ("smallest", None, "c"),
        ("smallest", 5, "b"),
        ("smallest", 0.5, "dense"),
        ("best", None, "c"),
        ("best", 0.5, "dense"),
        ("knee", None, "b"),
        ("knee", 2, "c"),
    ],
)
def test_what_is_kept(select: str, max_loss: float | None, name: str) -> None:
    front = (model("a", 100, 0.5), model("b", 400, 0.95), model("c", 2_000, 0.98))
    result = SearchResult(
        out=Path(), study="s", metric="accuracy", higher_is_better=True, trials={},
        dense=model("dense", 9_000, 0.99), front=front,
    )  # fmt: skip
    assert choice(result, select, max_loss).name == name


# --- networks ------------------------------------------------------------------------------------


class OneLogit(nn.Module):
    def __init__(self, n_features: int, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Linear(n_features, width)
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x).relu())
        return logits[:, 0]


def scaled(data: Arrays) -> Arrays:
    return StandardScaler().fit_transform(data[0]).astype(np.float32), data[1]


def test_a_network_of_ones_own_may_answer_with_one_logit(cancer: Arrays) -> None:
    X, y = scaled(cancer)
    model = PrunedClassifier(OneLogit, module_params={"width": 24}, **QUICK, select="best")
    model.fit(X, y)
    assert isinstance(model.module_, OneLogit)
    assert model.n_params_ < model.dense_n_params_ == 30 * 24 + 24 + 24 + 1
    assert model.score(X, y) > 0.85
    assert ((model.predict_proba(X)[:, 1] > 0.5) == model.predict(X)).all()


def test_images_go_through_a_network_that_shapes_them() -> None:
    X, y = some(load_digits(return_X_y=True), 200)

    def network(n_outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 36, n_outputs),
        )

    model = PrunedClassifier(network, **(QUICK | {"dense_epochs": 10}), select="best")
    model.fit(X / 16, y)
    assert model.module_[1].out_channels < 6
    assert model.predict(X / 16).shape == (200,)


def test_a_trained_module_is_taken_as_it_is(cancer: Arrays) -> None:
    X, y = scaled(cancer)
    trained = PrunedClassifier(lambda: net(), **QUICK, max_loss=0).fit(X, y)
    start = copy.deepcopy(trained.module_)
    before = copy.deepcopy(start.state_dict())
    quick = QUICK | {"dense_epochs": None}
    model = PrunedClassifier(start, **quick, max_loss=0).fit(X, y)
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
    guesses = answers(start, X).argmax(1)
    _, valid = split(Data(inputs=X, targets=y, classes=2), 0.2, seed=_seed())
    assert model.dense_score_ == pytest.approx((guesses == y)[valid].mean())


def _seed() -> int:
    return int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))


def net(probabilities: bool = False, outputs: int = 2) -> nn.Module:
    last = [nn.Softmax(1)] if probabilities else []
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


# --- skorch --------------------------------------------------------------------------------------

SKORCH: dict[str, Any] = {
    "max_epochs": 10, "lr": 0.01, "optimizer": torch.optim.Adam, "verbose": 0, "train_split": None
}  # fmt: skip


def test_a_fitted_skorch_net_is_pruned(cancer: Arrays) -> None:
    """By default a net answers with probabilities, which skorch takes the logarithm of."""
    X, y = scaled(cancer)
    fitted = NeuralNetClassifier(net(probabilities=True), **SKORCH).fit(X, y)
    logits = answers(module_of(fitted), X)
    assert np.allclose(torch.tensor(logits).softmax(1), fitted.predict_proba(X), atol=1e-5)
    quick = QUICK | {"dense_epochs": None}
    model = PrunedClassifier(FrozenEstimator(fitted), **quick, select="best").fit(X, y)
    _, valid = split(Data(inputs=X, targets=y, classes=2), 0.2, seed=_seed())
    assert model.dense_score_ == pytest.approx(fitted.score(X[valid], y[valid]))
    assert model.n_params_ < model.dense_n_params_
    assert model.score(X, y) > 0.8
    straight = PrunedClassifier(fitted, **quick, select="best").fit(X, y)
    assert (straight.predict_proba(X) == model.predict_proba(X)).all()


def test_a_skorch_net_that_is_not_fitted_trains_the_dense_network(cancer: Arrays) -> None:
    X, y = scaled(cancer)
    quick = QUICK | {"dense_epochs": None}
    criterion = nn.CrossEntropyLoss
    unfitted = NeuralNetClassifier(net(), criterion=criterion, **SKORCH)
    scores = cross_val_score(PrunedClassifier(unfitted, **quick), X, y, cv=2, error_score="raise")
    assert min(scores) > 0.8
    assert not unfitted.initialized_


def test_skorch_nets_of_other_kinds(cancer: Arrays) -> None:
    X, y = scaled(cancer)
    quick = QUICK | {"dense_epochs": None}
    binary = NeuralNetBinaryClassifier(net(outputs=1), **SKORCH)
    assert PrunedClassifier(binary, **quick).fit(X, y).score(X, y) > 0.8
    regressor = NeuralNetRegressor(net(outputs=1), **SKORCH)
    assert PrunedRegressor(regressor, **quick).fit(X, X[:, 0]).score(X, X[:, 0]) > 0.2
    odd = NeuralNetRegressor(net(outputs=1), criterion=nn.HuberLoss, **SKORCH)
    with pytest.raises(ValueError, match=r"must be one of NLLLoss, .* but is HuberLoss"):
        PrunedRegressor(odd, **quick).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=r"must be fitted before .* sample weights"):
        PrunedRegressor(regressor, **quick).fit(X, y, sample_weight=np.arange(200))


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(fitted: PrunedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "cancer"
    fitted.save(folder)
    return folder


def test_a_saved_estimator_is_there_without_pickle(
    saved: Path, fitted: PrunedClassifier, cancer: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"estimator.json", "plan.json", "model.safetensors", "model.pt2", "model.onnx"}
    assert {path.name for path in saved.iterdir()} == names
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(torch, "load", None)
    loaded = PrunedClassifier.load(saved)
    X, _ = cancer
    assert (loaded.predict_proba(X) == fitted.predict_proba(X)).all()
    assert loaded.predict(X).tolist() == fitted.predict(X).tolist()
    assert loaded.get_params() == fitted.get_params()
    for name in ("n_params_", "dense_score_", "front_", "selected_", "plan_", "n_features_in_"):
        assert getattr(loaded, name) == getattr(fitted, name)
    with pytest.raises(ValueError, match="29 features"):
        loaded.predict(X[:, 1:])


def test_files_that_were_altered_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match="must hold a PrunedRegressor"):
        PrunedRegressor.load(saved)
    with pytest.raises(AutopruneError, match=r"estimator.json"):
        PrunedClassifier.load(tmp_path)
    for name in ("model.safetensors", "model.onnx", ABOUT):
        folder = tmp_path / f"altered {name}"
        folder.mkdir()
        for file in saved.iterdir():
            content = file.read_bytes()
            if file.name == name:
                content = content[:-9] + b"1" + content[-8:]
            (folder / file.name).write_bytes(content)
        with pytest.raises(AutopruneError, match=re.escape(name)):
            PrunedClassifier.load(folder)


def test_an_estimator_is_saved_to_a_folder_of_its_own(
    fitted: PrunedClassifier, saved: Path
) -> None:
    with pytest.raises(AutopruneError, match="must be new or empty"):
        fitted.save(saved)
    assert PrunedClassifier.load(saved)


def test_a_network_that_does_not_answer_alike_twice_is_not_saved(
    fitted: PrunedClassifier, tmp_path: Path
) -> None:
    odd = copy.deepcopy(fitted)
    odd.module_[0].register_forward_hook(lambda module, inputs, output: output + torch.rand(()))
    with pytest.raises(AutopruneError, match="must answer as in memory, but"):
        odd.save(tmp_path / "odd")
    assert not list(tmp_path.iterdir())


def test_a_network_of_ones_own_is_loaded_with_its_code_or_by_onnx(tmp_path: Path) -> None:
    X, y = some(load_diabetes(return_X_y=True), 150)
    quick = QUICK | {"budget": np.int64(2)}  # as a grid has it
    model = PrunedRegressor(OneLogit, module_params={"width": 12}, **quick, select="best")
    model.fit(X, y).save(tmp_path / "net")
    expected = model.predict(X)
    loaded = PrunedRegressor.load(tmp_path / "net", module=OneLogit)
    assert (loaded.predict(X) == expected).all()
    assert isinstance(loaded.module_, nn.Module)
    bare = PrunedRegressor.load(tmp_path / "net")
    assert isinstance(bare.module_, OnnxNetwork)
    assert (bare.budget, bare.module) == (2, None)
    assert np.allclose(copy.deepcopy(bare).predict(X), expected, rtol=1e-5)
    with pytest.raises(AutopruneError, match="Load it with `module`"):
        bare.save(tmp_path / "again")
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from autoprune.sklearn import PrunedRegressor\n"
        f"model = PrunedRegressor.load({str(tmp_path / 'net')!r})\n"
        "print(model.predict(np.zeros((3, 10))).shape, 'torch' in sys.modules)\n"
    )
    assert python(code) == "(3,) False"


class Activated(nn.Sequential):
    """Answers otherwise by another activation, though its weights are of the same shapes."""

    def __init__(
        self, n_features: int, hidden: Sequence[int] = (8,), act: type[nn.Module] = nn.ReLU
    ) -> None:
        (width,) = hidden
        super().__init__(nn.Linear(n_features, width), act(), nn.Linear(width, 1))


def test_arguments_are_held_by_the_folder_or_bound_to_the_code(tmp_path: Path) -> None:
    X, y = some(load_diabetes(return_X_y=True), 100)
    quick = QUICK | {"max_loss": 0}
    numbers: dict[str, Any] = {"hidden": (np.int64(12),)}
    model = PrunedRegressor(Activated, module_params=numbers, **quick).fit(X, y)
    model.save(tmp_path / "numbers")
    loaded = PrunedRegressor.load(tmp_path / "numbers", module=Activated)
    assert (loaded.predict(X) == model.predict(X)).all()
    other = functools.partial(Activated, act=nn.Tanh)
    with pytest.raises(AutopruneError, match="does not answer as it did when it was saved"):
        PrunedRegressor.load(tmp_path / "numbers", module=other)

    odd = PrunedRegressor(Activated, module_params=numbers | {"act": nn.Tanh}, **quick).fit(X, y)
    odd.save(tmp_path / "odd")
    with pytest.raises(AutopruneError, match=r"has no act. Bind .* functools.partial"):
        PrunedRegressor.load(tmp_path / "odd", module=Activated)
    for module in (None, other):
        again = PrunedRegressor.load(tmp_path / "odd", module=module)
        assert np.allclose(again.predict(X), odd.predict(X), rtol=1e-5)


def test_what_the_code_raises_when_it_is_built_is_not_the_folders_fault(tmp_path: Path) -> None:
    X, y = some(load_diabetes(return_X_y=True), 100)
    PrunedRegressor(OneLogit, **QUICK).fit(X, y).save(tmp_path / "net")

    def failing(n_features: int) -> nn.Module:
        raise TypeError("not today")

    with pytest.raises(TypeError, match="not today"):
        PrunedRegressor.load(tmp_path / "net", module=failing)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_estimator_of_a_skorch_net_is_loaded_with_the_net(
    frozen: bool, cancer: Arrays, tmp_path: Path
) -> None:
    X, y = scaled(cancer)
    module: Any = NeuralNetClassifier(net(), criterion=nn.CrossEntropyLoss, **SKORCH)
    if frozen:
        module = FrozenEstimator(module.fit(X, y))
    model = PrunedClassifier(module, **(QUICK | {"dense_epochs": None})).fit(X, y)
    model.save(tmp_path / "net")
    before = torch.get_rng_state()
    loaded = PrunedClassifier.load(tmp_path / "net", module=module)
    assert torch.equal(before, torch.get_rng_state())
    assert (loaded.predict_proba(X) == model.predict_proba(X)).all()
    assert frozen or not module.initialized_


@pytest.mark.long
def test_a_folder_keeps_the_search_and_the_same_fit_goes_on(cancer: Arrays, tmp_path: Path) -> None:
    model = PrunedClassifier(**QUICK, out=tmp_path / "out").fit(*cancer)
    folder = tmp_path / "out" / "front" / model.front_[0].name
    assert (folder / "model.onnx").exists()
    again = clone(model).fit(*cancer)
    assert [t.datetime_start for t in again.study_.trials] == [
        t.datetime_start for t in model.study_.trials
    ]
    assert (again.predict_proba(cancer[0]) == model.predict_proba(cancer[0])).all()
    with pytest.raises(AutopruneError, match="holds another"):
        clone(model).fit(cancer[0][:100], cancer[1][:100])


@pytest.mark.long
def test_worker_processes_find_the_same_and_mlflow_is_told_if_asked(
    cancer: Arrays, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search = {"experiment": "estimators", "extras": False}
    alone = PrunedClassifier(**QUICK).fit(*cancer)
    model = PrunedClassifier(**QUICK, n_jobs=2, tracking_uri=uri, search_params=search)
    model.fit(*cancer)
    assert model.dense_score_ == pytest.approx(alone.dense_score_)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("estimators")
    assert experiment is not None
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert len(names) >= 2 + CHECKED["budget"]
    client._tracking_client.store.engine.dispose()
