"""What a search has finished so far, as a sampler reads it from the Optuna study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.searching.attributes import EPOCHS, FIXED, PARAMS, PARENT, RETRY_OF, VALID
from autoprune.searching.candidate import trial_name
from autoprune.searching.pareto import pareto
from autoprune.searching.proxies import PREDICTED
from autoprune.searching.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A completed trial."""

    number: int
    widths: Mapping[str, int]
    params: int
    score: float
    """Better when higher, whatever the metric is."""
    costs: Mapping[str, float]
    epochs: int
    """That it trained itself."""
    lineage_epochs: int
    """Along its whole lineage, its own included."""
    recipe: Mapping[str, Any]
    """Its trial's parameters."""
    predicted: float | None = None
    """The score that was expected of it, better when higher, if any was."""
    parent: Finished | None = None
    """Whose weights it began with; None for the dense model's."""

    @property
    def settled_epochs(self) -> int:
        """Epochs since it was last cut: its own, and those of parents of the same widths."""
        parent = self.parent
        before = parent.settled_epochs if trains_on(parent, self.widths) else 0
        return self.epochs + before


def trains_on(parent: Finished | None, widths: Mapping[str, int]) -> TypeGuard[Finished]:
    """Return whether a trial of these widths trains its parent on, without a cut."""
    return parent is not None and parent.widths == widths


class History:
    """Reads the completed trials of a study, each of them once: they do not change.

    Parameters
    ----------
    costs
        What the score is traded against, by the objectives' names.
    """

    def __init__(self, space: SearchSpace, *, higher_is_better: bool, costs: Sequence[str]) -> None:
        self._space = space
        self._sign = 1.0 if higher_is_better else -1.0
        self._costs = {PARAMS, *costs}
        self._known: dict[tuple[str, int], Finished] = {}

    def finished(self, study: optuna.Study) -> list[Finished]:
        """Return the completed trials that say what they came to, oldest first."""
        found: dict[str, Finished] = {}
        name = study.study_name
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if VALID not in trial.user_attrs or PARAMS not in trial.user_attrs:
                continue
            key = (name, trial.number)
            if key not in self._known:
                parent = found.get(str(trial.user_attrs.get(PARENT)))
                self._known[key] = self._read(trial, parent)
            found[trial_name(trial.number)] = self._known[key]
        return list(found.values())

    def _read(self, trial: FrozenTrial, parent: Finished | None) -> Finished:
        known = trial.user_attrs
        epochs = max(int(known.get(EPOCHS, 1)), 1)
        return Finished(
            number=trial.number,
            widths=self._space.widths(trial.params),
            params=int(known[PARAMS]),
            score=self._sign * known[VALID],
            costs={name: float(known[name]) for name in self._costs if name in known},
            epochs=epochs,
            lineage_epochs=epochs + (parent.lineage_epochs if parent else 0),
            recipe=trial.params,
            predicted=self._sign * known[PREDICTED] if PREDICTED in known else None,
            parent=parent,
        )


def front(finished: Iterable[Finished], cost: str = PARAMS) -> list[Finished]:
    """Return those that no other dominates in score and `cost`, by ascending cost."""
    return pareto(
        [f for f in finished if cost in f.costs],
        score=lambda f: f.score,
        costs=lambda f: [f.costs[cost]],
    )


def places_of(study: optuna.Study) -> dict[int, int]:
    """Return each trial's place in the search, by its number.

    A trial that is tried again, as its worker died or its user stopped it, takes the place of the
    first attempt; the others are counted. One whose driver was killed while it was asked for never
    began: the next one takes its place.
    """
    places: dict[int, int] = {}
    count = 0
    for trial in study.get_trials(deepcopy=False):
        first = places.get(trial.user_attrs.get(RETRY_OF, trial.number))
        places[trial.number] = count if first is None else first
        count += first is None and (trial.state != TrialState.FAIL or began(trial))
    return places


def began(trial: FrozenTrial) -> bool:
    """Return whether a trial was given a parent, or was in the queue.

    Another one's driver was killed while it was asked for: the sampler is asked for it again.
    """
    return PARENT in trial.user_attrs or FIXED in trial.system_attrs
