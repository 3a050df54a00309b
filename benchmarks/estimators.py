"""The estimators beside scikit-learn's own, how long a fit takes, and what it adds to a search.

    python benchmarks/estimators.py [--budget 20] [--folds 5] [--write]

Each data set is standardised in a pipeline and cross-validated: the small network that is kept, the
dense one it came from, trained alike, and scikit-learn's multi-layer perceptron as it is by default
(100 hidden neurons) but for its iterations. Then `PrunedClassifier(budget=10)` is fitted to all of
digits in this process, and the search in it is timed beside the whole.
`--write` puts the figures into RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from results_file import wrapped, write_section
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from autoprune import run
from autoprune.pruning.forward import count_params
from autoprune.sklearn import PrunedClassifier, PrunedRegressor
from autoprune.sklearn.data import Data
from autoprune.sklearn.fitting import study_of
from autoprune.sklearn.networks import answers
from autoprune.study import PruningStudy
from autoprune.training.finetune import finetune

TITLE = "Estimators for scikit-learn"
TURNS = 6
ASKED_SECONDS, ASKED_OVERHEAD = 60, 0.03
SETS = {
    "digits": (load_digits, PrunedClassifier, MLPClassifier),
    "breast cancer": (load_breast_cancer, PrunedClassifier, MLPClassifier),
    "diabetes": (load_diabetes, PrunedRegressor, MLPRegressor),
}


class Outcome(NamedTuple):
    score: float
    params: int


class Taken(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    times = told(*fits_to_digits(), load=os.getloadavg()[0])
    text = f"{shown(compared(options.budget, options.folds))}\n\n{times}"
    print(text)
    if options.write:
        about = (
            f"`python benchmarks/estimators.py --budget {options.budget} --folds {options.folds} "
            f"--write`: {options.folds}-fold cross-validation on {os.cpu_count()} cores, one "
            f"thread, everything in one process; accuracy, or r2 for diabetes, mean and standard "
            f"deviation over the folds; parameters are the median. All learn from the same "
            f"standardised folds; the estimators keep a fifth of each to validate with. "
            f"`MLPClassifier` and `MLPRegressor` are at their defaults but for max_iter=1000."
        )
        write_section(TITLE, f"{wrapped(about)}\n\n{text}")


# --- scores and sizes ----------------------------------------------------------------------------


def compared(budget: int, folds: int) -> list[tuple[str, str, list[Outcome]]]:
    """Return, by data set and method, what came of each fold."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for name, (load, kind, peer) in SETS.items():
        x, y = load(return_X_y=True)
        splitter = StratifiedKFold if kind is PrunedClassifier else KFold
        cut = splitter(folds, shuffle=True, random_state=0)
        for fold, (train, test) in enumerate(cut.split(x, y)):
            scaler = StandardScaler().fit(x[train])
            data = (scaler.transform(x[train]), y[train], scaler.transform(x[test]), y[test])
            methods: dict[str, Callable[[], Outcome]] = {
                "dense": lambda d=data, k=kind, f=fold: dense(k, f, *d),
                f"scikit-learn's {peer.__name__}": lambda d=data, p=peer, f=fold: own(p, f, *d),
            }
            for select in ("best", "smallest", "knee"):
                estimator = kind(budget=budget, select=select, random_state=fold)
                methods[f"{kind.__name__}, {select}"] = lambda e=estimator, d=data: pruned(e, *d)
            for method, outcome in methods.items():
                found.setdefault((name, method), []).append(outcome())
    return [(name, method, outcomes) for (name, method), outcomes in found.items()]


def pruned(estimator: Any, x: Any, y: Any, x_test: Any, y_test: Any) -> Outcome:
    estimator.fit(x, y)
    return Outcome(estimator.score(x_test, y_test), estimator.n_params_)


def own(kind: type[BaseEstimator], seed: int, x: Any, y: Any, x_test: Any, y_test: Any) -> Outcome:
    """Score scikit-learn's own perceptron."""
    model = kind(random_state=seed, max_iter=1000).fit(x, y)
    params = sum(w.size for w in (*model.coefs_, *model.intercepts_))
    return Outcome(model.score(x_test, y_test), params)


def dense(kind: Any, seed: int, x: Any, y: Any, x_test: Any, y_test: Any) -> Outcome:
    """Train the dense network as a fit of the estimator does, and score it."""
    study = study_like(kind(random_state=seed), x, y)
    model = study.build()
    assert study.train is not None
    for _ in finetune(model, study.task, study.train, seed=study.seed):
        pass
    found = answers(model, x_test.astype(np.float32))
    score = accuracy_score if kind is PrunedClassifier else r2_score
    guesses = found.argmax(1) if kind is PrunedClassifier else found.reshape(-1)
    return Outcome(float(score(y_test, guesses)), count_params(model))


def study_like(estimator: Any, x: Any, y: Any) -> PruningStudy:
    """Return the study that a fit of `estimator` makes."""
    classifies = isinstance(estimator, PrunedClassifier)
    data = Data(
        inputs=x.astype(np.float32),
        targets=y if classifies else y.astype(np.float32),
        classes=len(np.unique(y)) if classifies else None,
    )
    return study_of(estimator._order(), data)[0]


# --- time ----------------------------------------------------------------------------------------


def fits_to_digits() -> tuple[list[Taken], list[Taken]]:
    """Time fits to digits, and of each the search that is made in it."""
    x, y = load_digits(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    fits: list[Taken] = []
    searches: list[Taken] = []
    search = run.search

    def clocked(*arguments: Any, **settings: Any) -> Any:
        found = []
        searches.append(timed(lambda: found.append(search(*arguments, **settings))))
        return found[0]

    run.search = clocked
    try:
        for _ in range(TURNS + 1):
            estimator = PrunedClassifier(budget=10, random_state=0)
            fits.append(timed(lambda e=estimator: e.fit(x, y)))
    finally:
        run.search = search
    return fits[1:], searches[1:]  # the first ones paid for what is imported


def timed(call: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


# --- what is said --------------------------------------------------------------------------------


def shown(table: list[tuple[str, str, list[Outcome]]]) -> str:
    lines = ["| data | network | score | parameters |", "| --- | --- | --- | --- |"]
    for name, method, outcomes in table:
        scores = [outcome.score for outcome in outcomes]
        spread = f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}"
        params = statistics.median(outcome.params for outcome in outcomes)
        lines.append(f"| {name} | {method} | {spread} | {params:,.0f} |")
    return "\n".join(lines)


def told(fits: list[Taken], searches: list[Taken], *, load: float) -> str:
    wall = statistics.median(t.wall for t in fits)
    cpu = statistics.median(t.cpu for t in fits)
    over = [a.cpu / b.cpu - 1 for a, b in zip(fits, searches, strict=True)]
    waits = [a.wall / b.wall - 1 for a, b in zip(fits, searches, strict=True)]
    return wrapped(
        f"`PrunedClassifier(budget=10)` on all of digits takes {wall:.1f} s, of which the "
        f"processor works {cpu:.1f} s (median of {len(fits)}; asked: below {ASKED_SECONDS} s). "
        f"What the estimator adds to the call of `autoprune.search` within it is "
        f"{statistics.median(over):.2%} of processor time and {statistics.median(waits):.2%} of "
        f"the time on the clock (medians; at most {max(over):.2%} and {max(waits):.2%}; asked: "
        f"below {ASKED_OVERHEAD:.0%}). The machine's load was {load:.1f}."
    )


if __name__ == "__main__":
    main()
