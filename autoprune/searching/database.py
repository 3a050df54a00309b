"""The Optuna study in a database: few turns a trial, and patience while the server is away."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError

from autoprune.errors import AutopruneError, first_line

PATIENCE_SECONDS = 60.0
"""How long a search waits for a database that has gone away."""
LONGEST_PAUSE = 4.0
FRESH_SECONDS = 1.0
"""Trials of other drivers may be seen so much later than they are there."""
SCHEMA = "v3.2.0.a"
"""Version of Optuna's tables that trials are written to at once."""

Written = dict[tuple[int, str], Any]
"""Values to write, by trial and name."""
T = TypeVar("T")

_PARAMS = sqlalchemy.table(
    "trial_params",
    *map(sqlalchemy.column, ("trial_id", "param_name", "param_value", "distribution_json")),
)
_USER = sqlalchemy.table(
    "trial_user_attributes", *map(sqlalchemy.column, ("trial_id", "key", "value_json"))
)
_SYSTEM = sqlalchemy.table(
    "trial_system_attributes", *map(sqlalchemy.column, ("trial_id", "key", "value_json"))
)


class Database(BaseStorage):
    """Optuna's own storage, told of a trial's parameters and attributes in one transaction.

    A trial under way is known here, as the driver that runs it alone writes to it. Optuna asks for
    it before each parameter and commits after each, which takes half a second for 40 of them. Each
    turn is tried again for `PATIENCE_SECONDS` while the server does not answer.
    """

    def __init__(self, url: str, *, engine_kwargs: dict[str, Any] | None = None) -> None:
        database = RDBStorage(url, engine_kwargs={"pool_pre_ping": True, **(engine_kwargs or {})})
        self._engine = database.engine
        insert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
        known = database.get_head_version() == SCHEMA
        self._insert: Any = insert.get(self._engine.dialect.name) if known else None
        self._kept = get_storage(database)
        self._mine: dict[int, FrozenTrial] = {}
        """Trials under way of this process, by their ids."""
        self._seen: dict[int, tuple[float, list[FrozenTrial]]] = {}
        """All trials, by study, and when they were read."""
        self._params: dict[tuple[int, str], tuple[float, BaseDistribution]] = {}
        self._user: Written = {}
        self._system: Written = {}
        self._together = False

    # --- trials under way -------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what the context tells of trials under way in one transaction, at its end."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            self._write()

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        known = self._known(trial_id)
        known.params[param_name] = distribution.to_external_repr(param_value_internal)
        known.distributions[param_name] = distribution
        self._params[trial_id, param_name] = param_value_internal, distribution
        self._write_unless_together()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._known(trial_id).user_attrs[key] = value
        self._user[trial_id, key] = value
        self._write_unless_together()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._known(trial_id).system_attrs[key] = value
        self._system[trial_id, key] = value
        self._write_unless_together()

    def _known(self, trial_id: int) -> FrozenTrial:
        """Return a trial that may be written to; raise what Optuna does if it has ended."""
        if trial_id not in self._mine:
            found = self._turn(lambda: self._kept.get_trial(trial_id))
            self.check_trial_is_updatable(trial_id, found.state)
            self._mine[trial_id] = found
        return self._mine[trial_id]

    def _write_unless_together(self) -> None:
        if not self._together:
            self._write()

    def _write(self) -> None:
        if self._params or self._user or self._system:
            self._turn(self._write_one_by_one if self._insert is None else self._write_at_once)
            self._params, self._user, self._system = {}, {}, {}

    def _write_at_once(self) -> None:
        rows = [
            {
                "trial_id": trial,
                "param_name": name,
                "param_value": value,
                "distribution_json": distribution_to_json(distribution),
            }
            for (trial, name), (value, distribution) in self._params.items()
        ]
        with self._engine.begin() as connection:
            if rows:
                connection.execute(self._insert(_PARAMS).on_conflict_do_nothing(), rows)
            for table, written in ((_USER, self._user), (_SYSTEM, self._system)):
                values = [
                    {"trial_id": trial, "key": key, "value_json": json.dumps(value)}
                    for (trial, key), value in written.items()
                ]
                if values:
                    insert = self._insert(table)
                    new = {"value_json": insert.excluded.value_json}
                    put = insert.on_conflict_do_update(index_elements=["trial_id", "key"], set_=new)
                    connection.execute(put, values)

    def _write_one_by_one(self) -> None:
        for (trial, name), (value, distribution) in self._params.items():
            self._kept.set_trial_param(trial, name, value, distribution)
        for (trial, key), value in self._user.items():
            self._kept.set_trial_user_attr(trial, key, value)
        for (trial, key), value in self._system.items():
            self._kept.set_trial_system_attr(trial, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        made = self._turn(lambda: self._kept.create_new_trial(study_id, template_trial))
        if template_trial is None:
            self._mine[made] = self._turn(lambda: self._kept.get_trial(made))
        self._seen.pop(study_id, None)
        return made

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        self._write()

        def change(first: list[bool]) -> bool:
            if not first and self._kept.get_trial(trial_id).state == state:
                return True  # the answer to an earlier try was lost
            first.clear()
            return self._kept.set_trial_state_values(trial_id, state, values)

        first = [True]
        changed = self._turn(lambda: change(first))
        self._mine.pop(trial_id, None)
        self._seen.clear()
        return changed

    # --- reading ----------------------------------------------------------------------------

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id in self._mine:
            return copy.deepcopy(self._mine[trial_id])
        return self._turn(lambda: self._kept.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        read, trials = self._seen.get(study_id, (0.0, []))
        if time.monotonic() - read > FRESH_SECONDS:
            trials = self._turn(lambda: self._kept.get_all_trials(study_id, deepcopy=False))
            self._seen[study_id] = time.monotonic(), trials
        found = [self._mine.get(trial._trial_id, trial) for trial in trials]
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    # --- patience ---------------------------------------------------------------------------

    def _turn(self, act: Callable[[], T]) -> T:
        """Return what `act` does, which is tried again while the server is away."""
        deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.25
        while True:
            try:
                return act()
            except Exception as error:
                away = lost_connection(error)
                if away is None:
                    raise
                if time.monotonic() + pause > deadline:
                    raise AutopruneError(
                        f"The Optuna storage must answer, but for {PATIENCE_SECONDS:g} s it has "
                        f"not: {first_line(away)}. What is finished is kept: bring the database "
                        f"back, and the same command goes on."
                    ) from error
            self._engine.dispose()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    # --- as Optuna's own has it -------------------------------------------------------------

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self._turn(lambda: self._kept.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self._seen.pop(study_id, None)
        self._turn(lambda: self._kept.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._turn(lambda: self._kept.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._turn(lambda: self._kept.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._turn(lambda: self._kept.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._turn(lambda: self._kept.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._turn(lambda: self._kept.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._turn(lambda: self._kept.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._turn(lambda: self._kept.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        return self._turn(self._kept.get_all_studies)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        find = self._kept.get_trial_id_from_study_id_trial_number
        return self._turn(lambda: find(study_id, trial_number))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        write = self._kept.set_trial_intermediate_value
        self._turn(lambda: write(trial_id, step, intermediate_value))

    def remove_session(self) -> None:
        self._kept.remove_session()
        self._engine.dispose()


def lost_connection(error: BaseException) -> BaseException | None:
    """Return what of an error's causes says that the database does not answer; None if none does.

    >>> lost_connection(ValueError("no")) is None
    True
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, (OperationalError, InterfaceError)):
        found = found.__cause__
    return found
