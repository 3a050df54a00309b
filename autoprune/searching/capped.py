"""Optuna's samplers that take ever longer, shown no more trials than they can look at in time."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autoprune.searching.pareto import pareto

if TYPE_CHECKING:
    _Sampler = TPESampler  # any that has bodies to call
else:
    _Sampler = object


class _Excerpt:
    """A storage that shows some of a study's trials; all else is the storage's own."""

    def __init__(self, storage: BaseStorage, shown: list[FrozenTrial]) -> None:
        self._storage = storage
        self._shown = shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        found = [t for t in self._shown if states is None or t.state in states]
        return copy.deepcopy(found) if deepcopy else found


class Capped(_Sampler):
    """Shows a sampler `limit` trials: up to half are of the front, the rest are the latest ones."""

    limit: int
    _front: tuple[FrozenTrial, ...] = ()
    _read = 0
    """All trials before this number have been compared with the front."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(self._excerpt(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._excerpt(study), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        excerpt = self._excerpt(study)
        return super().sample_independent(excerpt, trial, param_name, param_distribution)

    def _excerpt(self, study: Study) -> Study:
        trials = study.get_trials(deepcopy=False)
        if len(trials) <= self.limit:
            return study
        shown = copy.copy(study)
        # A study has no public way to look at it through another storage.
        shown._storage = _Excerpt(study._storage, self._chosen(study, trials))  # type: ignore[assignment]
        return shown

    def _chosen(self, study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        self._learn(study, trials)
        chosen = {t.number: t for t in self._front[-(self.limit // 2) :]}
        for trial in reversed(trials):
            if len(chosen) >= self.limit:
                break
            chosen[trial.number] = trial
        return [chosen[number] for number in sorted(chosen)]

    def _learn(self, study: Study, trials: list[FrozenTrial]) -> None:
        """Compare the trials that have completed since with the front."""
        signs = [1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions]
        new = [t for t in trials[self._read :] if t.state == TrialState.COMPLETE]
        known = {t.number: t for t in (*self._front, *new)}
        self._front = tuple(
            pareto(
                known.values(),
                score=lambda t: signs[0] * t.values[0],
                costs=lambda t: [-s * v for s, v in zip(signs[1:], t.values[1:], strict=True)],
            )
        )
        open_ = (t.number for t in trials[self._read :] if not t.state.is_finished())
        self._read = next(open_, len(trials))


class CappedTPESampler(Capped, TPESampler):
    """Optuna's TPE; its cost is that of as many kernels as trials."""

    limit = 300


class CappedGPSampler(Capped, GPSampler):
    """Optuna's Gaussian process; its cost grows with the cube of the trials."""

    limit = 150
