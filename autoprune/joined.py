"""Several drivers on one study: what they must agree on, and who may run how many trials.

Each has a folder, workers and an export of its own. A trial says whose it is; the budget is of all
of them together.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import AutopruneError
from autoprune.results.changes import what_changed
from autoprune.searching.attributes import SURPLUS

SEARCH = "autoprune.search"
"""Attribute of a study: what makes a search the one that is joined."""
DRIVER = "driver"
"""User attribute of a trial: the id of the driver that runs it."""
OWN = ("storage", "join")
"""What of a search's identity may differ between its drivers: a server has many names."""
UNCLAIMED = timedelta(minutes=10)
"""Whoever asks for a trial claims it within moments: if not, its driver has died."""
TAKEN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)


def check_joined(storage: BaseStorage, name: str, identity: Mapping[str, Any]) -> None:
    """Raise `AutopruneError` if another search, or none of ours, goes by the name.

    Parameters
    ----------
    identity
        What makes this search what it is.
    """
    try:
        study = storage.get_study_id_from_name(name)
    except KeyError:
        return
    known = storage.get_study_user_attrs(study).get(SEARCH)
    if known is None and not storage.get_all_trials(study, deepcopy=False):
        return  # another driver is about to say what it is
    foreign = "autoprune has not made it"
    changed = foreign if known is None else what_changed(known, shared(identity))
    if changed is not None:
        raise AutopruneError(
            f"`--join` must name a study of this very search, but {name!r} in the storage is "
            f"another: {changed}. Use another name."
        )


def shared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a search's identity is the same for all its drivers."""
    return {name: value for name, value in identity.items() if name not in OWN}


class Crew:
    """The drivers of a study, as one of them sees them.

    Parameters
    ----------
    driver
        This driver's id.
    """

    def __init__(self, driver: str) -> None:
        self.driver = driver

    def enter(self, study: optuna.Study, identity: Mapping[str, Any], folder: Path) -> None:
        """Write into a study what its search is, and where this driver keeps what it finishes."""
        if SEARCH not in study.user_attrs:
            study.set_user_attr(SEARCH, shared(identity))
        study.set_user_attr(f"driver {self.driver}", f"{platform.node()}:{folder}")

    def is_mine(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get(DRIVER) == self.driver

    def taken(self, study: optuna.Study) -> int:
        """Return how many trials of the budget are done or under way, of all drivers."""
        known = study.get_trials(deepcopy=False, states=TAKEN[:3])
        return sum(_counts(trial) for trial in known)

    def done(self, study: optuna.Study) -> int:
        return len(study.get_trials(deepcopy=False, states=TAKEN[:2]))

    def is_surplus(self, study: optuna.Study, number: int, budget: int) -> bool:
        """Return whether a trial that was just claimed is one more than the budget has.

        Drivers that ask at the same moment all find room: of their trials, later ones give way.
        """
        known = study.get_trials(deepcopy=False, states=TAKEN)
        return sum(_counts(trial) for trial in known if trial.number < number) >= budget


def _counts(trial: FrozenTrial) -> bool:
    """Return whether a trial takes a place: not if its driver died before it could claim it."""
    if trial.state != TrialState.RUNNING or DRIVER in trial.user_attrs:
        return True
    return trial.datetime_start is None or datetime.now() - trial.datetime_start < UNCLAIMED


def give_back(study: optuna.Study, trial: optuna.Trial) -> None:
    """End a trial that the budget has no place for."""
    trial.set_user_attr(SURPLUS, True)
    study.tell(trial, state=TrialState.FAIL)
