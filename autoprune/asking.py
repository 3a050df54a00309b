"""Asking the Optuna study what to run next, and putting into its queue what is to come again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from autoprune.errors import AutopruneError, first_line, is_full
from autoprune.pool import Pool
from autoprune.pruning.cost import CostModel
from autoprune.searching.attributes import ATTEMPT, EPOCHS, FIXED, PARENT, RESUMED, RETRY_OF, WORK
from autoprune.searching.candidate import DENSE, FINAL, Candidate, trial_name
from autoprune.searching.history import began, places_of
from autoprune.searching.journal import together
from autoprune.searching.proxies import PREDICTED
from autoprune.searching.space import SearchSpace
from autoprune.sparsified import sparse_name
from autoprune.trialrun import TrialRun, shortened

RETRIES = 2
"""How often a trial, or any other job, is tried again whose worker died."""
FINAL_SEED = 500_000
"""What the final stage adds to the seed of the trial that it goes on from."""
CANDIDATE = "candidate"
"""User attribute of the final stage's trials: whom they train on."""
ENDED: dict[TrialState, str] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


class Asker:
    """Asks a study for trials and makes runs of them: with a plan, a parent, costs and a seed."""

    def __init__(
        self, *, space: SearchSpace, cost: CostModel, pool: Pool, seed: int, early_stop: bool
    ) -> None:
        self._space = space
        self._cost = cost
        self._pool = pool
        self._seed = seed
        self._early_stop = early_stop

    # --- the search -------------------------------------------------------------------------

    def ask(self, study: optuna.Study, *, epochs_left: float) -> TrialRun:
        """Return the sampler's next trial, which trains for `epochs_left` at most.

        Raises
        ------
        AutopruneError
            If the sampler proposes what is outside the space.
        """
        trial = self._proposed(study)
        predicted = getattr(study.sampler, "predictions", {}).get(trial.number)
        if predicted is not None:
            trial.set_user_attr(PREDICTED, predicted)
        asked = self._space.plan(trial.params)
        plan = shortened(asked, epochs_left)
        parent = self._pool.parent(plan.widths, recorded=trial.user_attrs.get(PARENT))
        run = TrialRun(
            trial=trial,
            name=trial_name(trial.number),
            plan=plan,
            parent=parent.name if parent else DENSE,
            parent_epochs=parent.epochs if parent else 0,
            params=self._cost.params(plan.widths),
            may_stop=self._early_stop,
            seed=self._seed_of(study, trial),
            asked_epochs=None if plan == asked else asked.finetune.epochs,
        )
        self._set_costs(run)
        run.counted_before = _on_record(study, run.work)
        return run

    def _proposed(self, study: optuna.Study) -> Trial:
        """Ask the sampler for a trial; raise `AutopruneError` for one outside the space.

        Optuna itself only replaces such values of `sample_relative`, by independent ones.
        """
        sampler = type(study.sampler).__name__
        try:
            trial = asked(study, self._space.distributions)
        except Exception as error:
            if is_full(error) or isinstance(error, AutopruneError):
                raise
            raise AutopruneError(
                f"A sampler must propose a value of the space for each parameter, but {sampler} "
                f"raised {first_line(error).rstrip('.')}."
            ) from error
        outside = self._space.outside(trial.params)
        if outside is not None:
            study.tell(trial, state=TrialState.FAIL)
            raise AutopruneError(
                f"A sampler must propose a value of the space for each parameter, but {sampler} "
                f"proposed {outside}."
            )
        return trial

    def _seed_of(self, study: optuna.Study, trial: Trial) -> int:
        """Return what a trial's training is seeded with: the same when it is tried again.

        That others were tried again before changes nothing either.
        """
        return self._seed * 1_000_003 + places_of(study)[trial.number]

    def _set_costs(self, run: TrialRun) -> None:
        """Write down what a trial costs, as far as that is known before it has run.

        The latency is that of a candidate with the same widths, if one was measured: noise must
        not let one of two equal models win.
        """
        widths = run.plan.widths
        run.costs |= {
            "params": run.params,
            "macs": self._cost.macs(widths),
            "memory": self._cost.memory(widths),
        }
        for twin in self._pool.twins(widths):
            if twin.score.latency is not None:
                run.costs["latency"] = twin.score.latency
                run.latency_spread = twin.score.latency_spread

    # --- the final stage --------------------------------------------------------------------

    def enqueue_finals(self, study: optuna.Study, candidates: Iterable[Candidate]) -> None:
        """Put the parameters of the trials that candidates came from into the study's queue."""
        for candidate in candidates:
            study.enqueue_trial(
                self._space.params(candidate.plan), user_attrs={CANDIDATE: candidate.name}
            )

    def ask_final(self, study: optuna.Study, *, epochs: int) -> TrialRun:
        """Return the next of the final stage's trials: a candidate is trained on for `epochs`."""
        trial = asked(study, self._space.distributions)
        candidate = self._pool.candidates[trial.user_attrs[CANDIDATE]]
        run = TrialRun(
            trial=trial,
            name=candidate.name + FINAL,
            plan=replace(candidate.plan, finetune=replace(candidate.plan.finetune, epochs=epochs)),
            parent=candidate.name,
            parent_epochs=candidate.epochs,
            params=candidate.score.params,
            may_stop=False,
            seed=(self._seed if candidate.seed is None else candidate.seed) + FINAL_SEED,
        )
        self._set_costs(run)
        run.counted_before = _on_record(study, run.work)
        return run

    # --- once more --------------------------------------------------------------------------

    def try_again(self, study: optuna.Study, trial: Trial | FrozenTrial, *, counted: bool) -> None:
        """Put a trial that came to nothing into the study's queue: the same parameters and parent.

        What is `counted` may happen `RETRIES` times. The trial is told after that, so that a driver
        that is killed in between finds it running; asked twice, this does nothing.
        """
        known = trial.user_attrs
        attempt = known.get(ATTEMPT, 0) + counted
        params = self._params_of(trial)
        first = known.get(RETRY_OF, trial.number)
        if isinstance(trial, FrozenTrial) and not began(trial):
            return
        if attempt > RETRIES or params is None or _waits(study, first):
            return
        again = {RETRY_OF: first, ATTEMPT: attempt}
        again |= {name: known[name] for name in (PARENT, PREDICTED, CANDIDATE) if name in known}
        study.enqueue_trial(params, user_attrs=again)

    def _params_of(self, trial: Trial | FrozenTrial) -> dict[str, Any] | None:
        """Return a trial's parameters; None if its driver was killed before it had them all."""
        if self._is_whole(trial):
            return trial.params
        # One from the queue is given them at first.
        given: dict[str, Any] | None = getattr(trial, "system_attrs", {}).get(FIXED)
        return given

    def sparsified(self, study: optuna.Study, parent: str) -> set[str]:
        """Return under which names sparsifiers may have trained a parent for its children."""
        trials = study.get_trials(deepcopy=False)
        children = [t for t in trials if t.user_attrs.get(PARENT) == parent]
        plans = [self._space.plan(c.params) for c in children if self._is_whole(c)]
        return {sparse_name(plan, parent) for plan in plans if plan.sparsify is not None}

    def _is_whole(self, trial: Trial | FrozenTrial) -> bool:
        """Return whether a trial came as far as to have all its parameters."""
        return trial.params.keys() == self._space.distributions.keys()


def asked(study: optuna.Study, distributions: Mapping[str, BaseDistribution]) -> Trial:
    """Ask a study for a trial, all of whose parameters are written at once.

    What `Study.ask` does with distributions, but for the writing: one by one it takes long.
    """
    trial = study.ask()
    with together(trial.storage):
        for name, of in distributions.items():
            if isinstance(of, FloatDistribution):
                trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
            elif isinstance(of, IntDistribution):
                trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log)
            else:
                assert isinstance(of, CategoricalDistribution)
                trial.suggest_categorical(name, of.choices)
    return trial


def _on_record(study: optuna.Study, work: str) -> int:
    """Return how many epochs of the same work earlier attempts have on record."""
    known = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
    return sum(a.get(EPOCHS, 0) - a.get(RESUMED, 0) for a in known if a.get(WORK) == work)


def _waits(study: optuna.Study, first: int) -> bool:
    """Return whether a trial is in the queue that tries the one of this number again."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return any(trial.user_attrs.get(RETRY_OF) == first for trial in waiting)


def ended_trials(study: optuna.Study, final_study: optuna.Study) -> set[tuple[str, str]]:
    """Return name and state of every ended trial of a search and its final stage."""
    searched = {(trial_name(t.number), t.state) for t in study.get_trials(deepcopy=False)}
    finals = {
        (t.user_attrs[CANDIDATE] + FINAL, t.state)
        for t in final_study.get_trials(deepcopy=False)
        if CANDIDATE in t.user_attrs
    }
    return {(name, ENDED[state]) for name, state in searched | finals if state in ENDED}


def awaited_parents(study: optuna.Study) -> set[str]:
    """Return the parents of the trials in the study's queue."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return {trial.user_attrs[PARENT] for trial in waiting if PARENT in trial.user_attrs}


def waiting_count(study: optuna.Study) -> int:
    """Return how many trials are in the study's queue."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def clear_queue(study: optuna.Study) -> None:
    """Fail what an interrupted final stage left behind: the front may have changed since."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(frozen.number, state=TrialState.FAIL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)
