"""Taking up what an earlier sitting left: what it finished, left running, or had not told yet.

A driver may be killed between any two of its steps. It writes down what a trial came to in this
order: attributes, MLflow's record, candidate, state. So of a trial that is still running in the
study, what the store has tells how far it came.
"""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.asking import CANDIDATE, Asker
from autoprune.pool import Pool
from autoprune.results.store import Store
from autoprune.searching.candidate import FINAL, Candidate, Score, trial_name


class Recovery:
    """Takes up a search where an earlier sitting left it."""

    def __init__(
        self,
        *,
        asker: Asker,
        store: Store,
        pool: Pool,
        values: Callable[[Score], float | list[float]],
        note: Callable[[str], None],
        mine: Callable[[FrozenTrial], bool],
    ) -> None:
        self._asker = asker
        self._store = store
        self._pool = pool
        self._values = values
        self._note = note
        self._mine = mine

    def take_up(self, study: optuna.Study) -> None:
        """Load what was finished; tell what was finished but not told; try again what was not."""
        for frozen in study.get_trials(deepcopy=False):
            name = name_of(frozen)
            if frozen.state == TrialState.COMPLETE and self._store.has_candidate(name):
                self._load(name)
            elif frozen.state == TrialState.RUNNING:
                if is_final(frozen) or self._mine(frozen):  # else another driver has it
                    self._settle(study, frozen, name)
            elif frozen.state == TrialState.FAIL and not is_final(frozen):
                self._store.drop_weights(name)  # it may have come as far as that

    def _load(self, name: str) -> None:
        if not name.endswith(FINAL) and not self._pool.load(name):
            self._note(
                f"{self._store.weights(name)} was altered or cut short: {name} is left out of the "
                f"front, and nothing is cut from it."
            )

    def _settle(self, study: optuna.Study, frozen: FrozenTrial, name: str) -> None:
        """Tell a trial that was under way: complete if it had come to a candidate, else failed."""
        candidate = self._finished(name)
        if candidate is not None and candidate.trial == frozen.number:
            study.tell(frozen.number, self._values(candidate.score))
            self._load(name)
            return
        if not is_final(frozen):  # the final stage takes the front of now
            self._asker.try_again(study, frozen, counted=True)
            self._store.drop_weights(name)
        study.tell(frozen.number, state=TrialState.FAIL)

    def _finished(self, name: str) -> Candidate | None:
        """Return a candidate that is there, with its weights."""
        if not self._store.has_candidate(name):
            return None
        candidate = self._store.load_candidate(name)
        return candidate if self._store.is_intact(candidate) else None


def is_final(frozen: FrozenTrial) -> bool:
    """Return whether a trial is one of the final stage's."""
    return CANDIDATE in frozen.user_attrs


def name_of(frozen: FrozenTrial) -> str:
    """Return the name of a trial's candidate."""
    if is_final(frozen):
        return str(frozen.user_attrs[CANDIDATE]) + FINAL
    return trial_name(frozen.number)
