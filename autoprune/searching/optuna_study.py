"""The Optuna study: where it is kept, what it optimises."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from autoprune.errors import AutopruneError, first_line, is_full
from autoprune.searching.attributes import EPOCHS, RESUMED, SURPLUS


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna log errors alone, as long as the context lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def opened(url: str | None) -> Iterator[BaseStorage | None]:
    """Open the database of a storage URL, if there is one, and close it; see `open_database`."""
    if url is None:
        yield None
        return
    from autoprune.searching.storage_url import open_database  # SQLAlchemy is slow to import

    storage = open_database(url)
    try:
        yield storage
    finally:
        storage.remove_session()


def open_study(
    name: str, *, storage: BaseStorage, objectives: Sequence[tuple[str, bool]]
) -> optuna.Study:
    """Open a study, or create it.

    Parameters
    ----------
    objectives
        Name of each, and whether more of it is better.

    Raises
    ------
    AutopruneError
        If the storage does not let us.
    """
    directions = [
        StudyDirection.MAXIMIZE if higher else StudyDirection.MINIMIZE for _, higher in objectives
    ]
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
    except Exception as error:
        if is_full(error) or isinstance(error, AutopruneError):
            raise
        raise AutopruneError(
            f"The Optuna storage must be open to us, but opening it raised {first_line(error)}. "
            f"Check --storage."
        ) from error
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective for objective, _ in objectives])
    return study


def trained_epochs(study: optuna.Study) -> int:
    """Return how many epochs all trials have trained, whatever became of them.

    Those that an interrupted trial had trained, and that it went on from, count once.
    """
    known = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
    return sum(attrs.get(EPOCHS, 0) - attrs.get(RESUMED, 0) for attrs in known)


def ended_counts(study: optuna.Study) -> dict[str, int]:
    trials = study.get_trials(deepcopy=False)
    states = [trial.state.name for trial in trials if SURPLUS not in trial.user_attrs]
    names = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
    return {word: states.count(state) for state, word in names.items()}
