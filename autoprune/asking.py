"""Asking the Optuna study what to run next, and putting into its queue what is to come again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autoprune.errors import AutopruneError, first_line
from autoprune.pool import Pool
from autoprune.pruning.cost import CostModel
from autoprune.searching.candidate import DENSE, FINAL, Candidate, trial_name
from autoprune.searching.history import ATTEMPT, PARENT, RETRY_OF
from autoprune.searching.proxies import PREDICTED
from autoprune.searching.space import SearchSpace
from autoprune.sparsified import sparse_name
from autoprune.trialrun import TrialRun, shortened

RETRIES = 2
"""How often a trial is tried again whose worker died."""
FINAL_SEED = 500_000
"""What the final stage adds to a trial's seed."""
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
            seed=self._seed_of(trial),
            asked_epochs=None if plan == asked else asked.finetune.epochs,
        )
        self._set_costs(run)
        return run

    def _proposed(self, study: optuna.Study) -> Trial:
        """Ask the sampler for a trial; raise `AutopruneError` for one outside the space.

        Optuna itself only replaces such values of `sample_relative`, by independent ones.
        """
        sampler = type(study.sampler).__name__
        try:
            trial = study.ask(self._space.distributions)
        except Exception as error:
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

    def _seed_of(self, trial: Trial) -> int:
        """Return what a trial's training is seeded with: the same when it is tried again."""
        return self._seed * 1_000_003 + int(trial.user_attrs.get(RETRY_OF, trial.number))

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
        trial = study.ask(self._space.distributions)
        candidate = self._pool.candidates[trial.user_attrs[CANDIDATE]]
        run = TrialRun(
            trial=trial,
            name=candidate.name + FINAL,
            plan=replace(candidate.plan, finetune=replace(candidate.plan.finetune, epochs=epochs)),
            parent=candidate.name,
            parent_epochs=candidate.epochs,
            params=candidate.score.params,
            may_stop=False,
            seed=self._seed_of(trial) + FINAL_SEED,
        )
        self._set_costs(run)
        return run

    # --- once more --------------------------------------------------------------------------

    def try_again(self, study: optuna.Study, trial: Trial | FrozenTrial, *, counted: bool) -> None:
        """Put a trial that came to nothing into the study's queue: the same parameters and parent.

        What is `counted` may happen `RETRIES` times.
        """
        known = trial.user_attrs
        attempt = known.get(ATTEMPT, 0) + counted
        if attempt > RETRIES or not self._is_whole(trial):
            return
        again = {RETRY_OF: known.get(RETRY_OF, trial.number), ATTEMPT: attempt}
        if PARENT in known:
            again[PARENT] = known[PARENT]
        study.enqueue_trial(trial.params, user_attrs=again)

    def sparsified(self, study: optuna.Study, parent: str) -> set[str]:
        """Return under which names sparsifiers may have trained a parent for its children."""
        trials = study.get_trials(deepcopy=False)
        children = [t for t in trials if t.user_attrs.get(PARENT) == parent]
        plans = [self._space.plan(c.params) for c in children if self._is_whole(c)]
        return {sparse_name(plan, parent) for plan in plans if plan.sparsify is not None}

    def _is_whole(self, trial: Trial | FrozenTrial) -> bool:
        """Return whether a trial came as far as to have all its parameters."""
        return trial.params.keys() == self._space.distributions.keys()


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


def clear_queue(study: optuna.Study) -> None:
    """Fail what an interrupted final stage left behind: the front may have changed since."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(frozen.number, state=TrialState.FAIL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)
