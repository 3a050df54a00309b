"""The loop: ask, choose a parent, run, stop the dominated, tell.

The driver alone writes to Optuna and MLflow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autoprune import jobs
from autoprune.errors import AutopruneError, first_line
from autoprune.progress import EndedTrial, FrontPoint, Reporter, Stage, Status
from autoprune.pruning.cost import CostModel
from autoprune.pruning.plan import Plan
from autoprune.results.records import State
from autoprune.results.store import Store
from autoprune.results.tracking import Tracker
from autoprune.running.executor import Done, Event, Executor, Failed, Progress
from autoprune.searching.candidate import DENSE, FINAL, Candidate, Score, trial_name
from autoprune.searching.history import (
    ATTEMPT,
    INTERRUPTED,
    PARAMS,
    PARENT,
    RETRY_OF,
    VALID,
)
from autoprune.searching.lineage import choose_parent, lineage_of, needed_weights
from autoprune.searching.objectives import DEFAULT_COSTS, cost_of
from autoprune.searching.pareto import front_of
from autoprune.searching.proxies import PREDICTED
from autoprune.searching.space import SearchSpace
from autoprune.searching.stopping import StoppingRule
from autoprune.sparsified import sparse_name
from autoprune.trialrun import TrialRun, shortened

FAILURES_IN_A_ROW = 5
"""After so many, something is wrong with more than one plan."""
RETRIES = 2
"""How often a trial is tried again whose worker died."""
FINAL_SEED = 500_000
"""What the final stage adds to a trial's seed."""
Values = Callable[[Score], float | list[float]]
"""Turns a score into what Optuna is told."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What is known of the dense model."""

    score: Score
    sensitivity: Mapping[str, float]
    lamp: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """LAMP scores of its channels, by group."""
    noise: float = 0.0
    """Standard error of its score, for another draw of the validation split; 0 if not known."""


class Driver:
    """Runs trials of an Optuna study on an executor.

    Parameters
    ----------
    values
        What Optuna is told of a score: one number per objective, or one in all.
    costs
        What the score is traded against, by the objectives' names.
    latency
        How latency is measured, as `jobs.evaluate` takes it; None measures none.
    inherit
        Whether trials are cut from finished candidates; else all are from the dense model.
    budget_epochs
        Epochs to train in all, the final stage's included; None bounds nothing.
    final_epochs
        Epochs that the final stage will want for each model of the front.

    Attributes
    ----------
    candidates
        What has been finished, by name. The weights of some have been dropped.
    """

    def __init__(
        self,
        *,
        space: SearchSpace,
        cost: CostModel,
        store: Store,
        executor: Executor,
        tracker: Tracker,
        reporter: Reporter,
        dense: Dense,
        metric: str,
        higher_is_better: bool,
        seed: int,
        values: Values,
        costs: Sequence[str] = DEFAULT_COSTS,
        latency: Mapping[str, Any] | None = None,
        early_stop: bool = True,
        inherit: bool = True,
        budget_epochs: int | None = None,
        final_epochs: int = 0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.candidates: dict[str, Candidate] = {}
        self._space = space
        self._cost = cost
        self._store = store
        self._executor = executor
        self._tracker = tracker
        self._reporter = reporter
        self._dense = dense
        self._metric = metric
        self._higher_is_better = higher_is_better
        self._seed = seed
        self._values = values
        self._costs = tuple(costs)
        self._latency = latency
        self._early_stop = early_stop
        self._inherit = inherit
        self._budget_epochs = budget_epochs
        self._final_epochs = final_epochs
        self._spent = 0
        self._tags = dict(tags or {})
        self._rule = StoppingRule(higher_is_better=higher_is_better)
        self._running: dict[str, TrialRun] = {}
        self._dropped: set[str] = set()
        """Candidates without weights: history, but nobody's parents."""
        self._failures = 0

    # --- the search -------------------------------------------------------------------------

    def resume(self, study: optuna.Study, *, spent: int = 0) -> None:
        """Take up what an earlier run finished; what it left running is tried again.

        `spent` is how many epochs it has trained.
        """
        self._spent = spent
        for frozen in study.get_trials(deepcopy=False):
            name = trial_name(frozen.number)
            if frozen.state == TrialState.COMPLETE and self._store.has_candidate(name):
                self.candidates[name] = self._store.load_candidate(name)
                if not self._store.has_weights(name):
                    self._dropped.add(name)
            elif frozen.state in (TrialState.RUNNING, TrialState.FAIL):
                if frozen.state == TrialState.RUNNING:
                    study.tell(frozen.number, state=TrialState.FAIL)
                    self._try_again(study, frozen, counted=True)
                self._store.drop_weights(name)  # it may have come as far as that
        self._drop_weights(study)

    def search(self, study: optuna.Study, *, budget: int | None, deadline: float | None) -> None:
        """Run trials until `budget` have ended as complete or stopped, or epochs or time are over.

        Failed trials use no budget, but epochs. Trials under way at the deadline are finished. A
        trial that asks for more epochs than are left trains for those.

        Raises
        ------
        AutopruneError
            If trial after trial fails.
        """
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        done = len(study.get_trials(deepcopy=False, states=states))
        stages = self._search_stages(budget, done)
        while True:
            while (
                len(self._running) < self._executor.slots
                and (budget is None or done + len(self._running) < budget)
                and (deadline is None or time.monotonic() < deadline)
                and self._epochs_left() >= 1
            ):
                self._start(self._ask(study))
                self._report_search(stages, done)
            if not self._running:
                return
            ended = self._handle(study, self._executor.next_event())
            if ended is not None:
                done += ended.state != "failed"
                self._drop_weights(study)
            self._report_search(stages, done, ended)

    def _epochs_left(self) -> float:
        """Return the epochs a new trial may take: what is neither spent, under way nor reserved."""
        if self._budget_epochs is None:
            return math.inf
        under_way = sum(run.planned_epochs for run in self._running.values())
        return self._budget_epochs - self._spent - under_way - self._reserved_epochs()

    def _reserved_epochs(self) -> int:
        """Return how many epochs the final stage of the front as it is will want."""
        if not self._final_epochs:
            return 0
        return self._final_epochs * len(self._without_final())

    def _ask(self, study: optuna.Study) -> TrialRun:
        left = self._epochs_left()
        trial = self._proposed(study)
        predicted = getattr(study.sampler, "predictions", {}).get(trial.number)
        if predicted is not None:
            trial.set_user_attr(PREDICTED, predicted)
        asked = self._space.plan(trial.params)
        plan = shortened(asked, left)
        parent = self._parent(plan, recorded=trial.user_attrs.get(PARENT))
        return TrialRun(
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

    def _parent(self, plan: Plan, *, recorded: str | None) -> Candidate | None:
        """Return whose weights a plan is cut from; None for the dense model's.

        A trial that is tried again has the parent that was recorded at first.
        """
        if not self._inherit or recorded == DENSE:
            return None
        there = {c.name: c for c in self._with_weights()}
        if recorded in there:
            return there[recorded]
        front = front_of(there.values(), higher_is_better=self._higher_is_better)
        return choose_parent(front, plan.widths)

    def _with_weights(self) -> list[Candidate]:
        return [c for name, c in self.candidates.items() if name not in self._dropped]

    def _drop_weights(self, study: optuna.Study) -> None:
        """Delete the weights of candidates that are on no front and that nobody waits for."""
        needed = needed_weights(
            self._with_weights(), higher_is_better=self._higher_is_better, costs=self._costs
        )
        needed |= {running.parent for running in self._running.values()}
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        needed |= {trial.user_attrs[PARENT] for trial in waiting if PARENT in trial.user_attrs}
        for name in self.candidates.keys() - self._dropped - needed:
            for each in (name, name + FINAL, *self._sparsified(study, name)):
                self._store.drop_weights(each)
            self._dropped.add(name)

    def _sparsified(self, study: optuna.Study, parent: str) -> set[str]:
        """Return under which names sparsifiers may have trained a parent for its children."""
        trials = study.get_trials(deepcopy=False)
        children = [t for t in trials if t.user_attrs.get(PARENT) == parent]
        plans = [self._space.plan(c.params) for c in children if self._is_whole(c)]
        return {sparse_name(plan, parent) for plan in plans if plan.sparsify is not None}

    # --- the final stage --------------------------------------------------------------------

    def finish(self, study: optuna.Study, *, epochs: int) -> dict[str, Candidate]:
        """Fine-tune the front longer, each model from its own weights, in a study of its own.

        Where fewer epochs are left than that takes, the lowest scores go first: they have the most
        to gain, and the rest of the front stays as it is.

        Returns, by name of the front's candidate, the better of it and its final stage: they are
        of one size, and of equals the longer trained one is taken.
        """
        front = self.front()
        _clear_queue(study)
        waiting = self._affordable(self._without_final(), epochs)
        for candidate in waiting:
            study.enqueue_trial(
                self._space_params(candidate), user_attrs={"candidate": candidate.name}
            )
        stage, done = Stage("final", len(waiting), 0), 0
        while waiting or self._running:
            while waiting and len(self._running) < self._executor.slots:
                waiting.pop(0)
                self._start(self._ask_final(study, epochs))
                self._report(stage, done, eta=stage.eta(done + self._partly()))
            ended = self._handle(study, self._executor.next_event())
            done += ended is not None
            self._report(stage, done, ended, eta=stage.eta(done + self._partly()))
        return {c.name: self._better(c) for c in front}

    def _without_final(self) -> list[Candidate]:
        """Return the front's candidates that have not been through the final stage."""
        return [c for c in self.front() if not self._has_final(c)]

    def _has_final(self, candidate: Candidate) -> bool:
        name = candidate.name + FINAL
        return self._store.has_candidate(name) and self._store.has_weights(name)

    def _affordable(self, waiting: Sequence[Candidate], epochs: int) -> list[Candidate]:
        if self._budget_epochs is None:
            return list(waiting)
        count = max(self._budget_epochs - self._spent, 0) // epochs
        if count < len(waiting):
            self._reporter.note(
                f"{len(waiting) - count} of the front's {len(waiting)} models get no final "
                f"fine-tuning: the epochs of the budget are used up."
            )
        sign = 1.0 if self._higher_is_better else -1.0
        return sorted(waiting, key=lambda c: sign * c.score.valid)[:count]

    def _space_params(self, candidate: Candidate) -> dict[str, Any]:
        """Return the parameters of the trial that a candidate came from."""
        return self._space.params(candidate.plan)

    def _ask_final(self, study: optuna.Study, epochs: int) -> TrialRun:
        trial = study.ask(self._space.distributions)
        candidate = self.candidates[trial.user_attrs["candidate"]]
        return TrialRun(
            trial=trial,
            name=candidate.name + FINAL,
            plan=replace(candidate.plan, finetune=replace(candidate.plan.finetune, epochs=epochs)),
            parent=candidate.name,
            parent_epochs=candidate.epochs,
            params=candidate.score.params,
            may_stop=False,
            seed=self._seed_of(trial) + FINAL_SEED,
        )

    def _better(self, candidate: Candidate) -> Candidate:
        if not self._has_final(candidate):
            return candidate  # it failed, or the budget was used up
        final = self._store.load_candidate(candidate.name + FINAL)
        sign = 1.0 if self._higher_is_better else -1.0
        improved = sign * final.score.valid >= sign * candidate.score.valid
        return final if improved else candidate

    def _seed_of(self, trial: Trial) -> int:
        """Return what a trial's training is seeded with: the same when it is tried again."""
        return self._seed * 1_000_003 + int(trial.user_attrs.get(RETRY_OF, trial.number))

    # --- one trial --------------------------------------------------------------------------

    def _start(self, running: TrialRun) -> None:
        self._running[running.name] = running
        widths = running.plan.widths
        running.costs |= {
            "params": running.params,
            "macs": self._cost.macs(widths),
            "memory": self._cost.memory(widths),
        }
        self._take_known_latency(running)
        self._note(
            running,
            **{PARENT: running.parent},
            lineage=lineage_of(running.parent, self.candidates),
            seed=running.seed,
        )
        self._executor.submit(
            running.name,
            jobs.evaluate,
            name=running.name,
            plan=replace(running.plan, kept=None).to_json(),
            parent=running.parent,
            seed=running.seed,
            latency=None if "latency" in running.costs else self._latency,
        )

    def _take_known_latency(self, running: TrialRun) -> None:
        """Give a trial the latency of a candidate with the same widths, if one was measured.

        Noise must not let one of two equal models win.
        """
        for candidate in self.candidates.values():
            score = candidate.score
            if score.latency is not None and candidate.plan.widths == running.plan.widths:
                running.costs["latency"] = score.latency
                running.latency_spread = score.latency_spread

    def _handle(self, study: optuna.Study, event: Event) -> EndedTrial | None:
        running = self._running[event.job]
        if isinstance(event, Progress):
            self._hear(running, event.value)
            return None
        del self._running[event.job]
        self._spent += running.epochs
        if isinstance(event, Failed):
            return self._fail(study, running, event.cause, again=event.died)
        assert isinstance(event, Done)
        self._failures = 0
        return (
            self._stop(study, running)
            if running.stopped
            else self._complete(study, running, event.value)
        )

    def _hear(self, running: TrialRun, value: Mapping[str, Any]) -> None:
        wider = running.hear_wider(value)
        if not wider:
            running.curve.append(value["valid"])
        if self._budget_epochs is not None:  # they count even if this driver is killed
            self._note(running, epochs=running.epochs)
        if wider:
            self._executor.answer(running.name, go_on=True)
            return
        if "loss" in value:
            running.losses.append(value["loss"])
        if "latency" in value:
            running.costs["latency"] = value["latency"]
            running.latency_spread = value["latency_spread"]
        # Of the same size too: a cost that is not known yet will mostly follow it.
        compared = {"params", *self._costs}
        running.stopped = running.may_stop and self._rule.dominated(
            costs={n: cost for n, cost in running.costs.items() if n in compared},
            epochs=running.plan.finetune.epochs,
            earlier_epochs=len(running.earlier),
            curve=running.curve,
            completed=self.candidates.values(),
        )
        self._executor.answer(running.name, go_on=not running.stopped)

    def _complete(
        self, study: optuna.Study, running: TrialRun, result: Mapping[str, Any]
    ) -> EndedTrial:
        score = Score(
            valid=result["valid"],
            params=result["params"],
            macs=result["macs"],
            size_bytes=result["size_bytes"],
            memory=self._cost.memory(running.plan.widths),
            latency=running.costs.get("latency"),
            latency_spread=running.latency_spread,
        )
        # Of single weights, one that is kept may happen to be zero.
        masked = running.plan.granularity != "channel"
        if score.params > running.params or (score.params != running.params and not masked):
            return self._fail(
                study,
                running,
                f"The cut model must have the {running.params} parameters that its widths imply, "
                f"but has {score.params}. Please report this model.",
            )
        candidate = Candidate(
            name=running.name,
            trial=running.trial.number,
            plan=Plan.from_json(result["plan"]),
            score=score,
            parent=running.parent,
            epochs=running.parent_epochs
            + running.plan.finetune.epochs
            + len(running.sparsify_curve),
            curve=tuple(running.curve),
            seed=running.seed,
        )
        self._store.save_candidate(candidate)
        self._note(
            running,
            **{VALID: score.valid, PARAMS: score.params},
            **{name: cost_of(score, name) for name in self._costs if name != PARAMS},
            curve=running.curve,
            seconds=result["seconds"],
            **running.attributes,
        )
        study.tell(running.trial, self._values(score))
        if not running.is_final:
            self.candidates[candidate.name] = candidate
        self._record(running, "complete", candidate)
        return running.ended("complete")

    def _stop(self, study: optuna.Study, running: TrialRun) -> EndedTrial:
        # Its curve goes into an attribute: TPE cannot read a pruned trial of several objectives
        # that carries intermediate values.
        self._note(running, curve=running.curve, **running.attributes)
        study.tell(running.trial, state=TrialState.PRUNED)
        self._record(running, "stopped", None)
        return running.ended("stopped")

    def _fail(
        self, study: optuna.Study, running: TrialRun, cause: str, *, again: bool = False
    ) -> EndedTrial:
        self._note(running, cause=cause, **running.attributes)
        study.tell(running.trial, state=TrialState.FAIL)
        self._store.drop_weights(running.name)
        if again and not running.is_final:
            self._try_again(study, running.trial, counted=True)
        self._record(running, "failed", None, cause=cause)
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise AutopruneError(
                f"{self._failures} trials in a row failed, so the search stops. "
                f"The last one: {cause}"
            )
        return running.ended("failed", cause)

    def park(self, study: optuna.Study) -> None:
        """Give up the trials under way, as when the user stops the search."""
        for running in self._running.values():
            self._spent += running.epochs
            self._note(running, cause=INTERRUPTED, **running.attributes)
            study.tell(running.trial, state=TrialState.FAIL)
            if not running.is_final:
                self._try_again(study, running.trial, counted=False)
            self._record(running, "failed", None, cause=INTERRUPTED)
        self._running.clear()

    def _try_again(self, study: optuna.Study, trial: Trial | FrozenTrial, *, counted: bool) -> None:
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

    def _is_whole(self, trial: Trial | FrozenTrial) -> bool:
        """Return whether a trial came as far as to have all its parameters."""
        return trial.params.keys() == self._space.distributions.keys()

    def _note(self, running: TrialRun, **attributes: Any) -> None:
        for name, value in attributes.items():
            running.trial.set_user_attr(name, value)

    # --- telling ----------------------------------------------------------------------------

    def _record(
        self, run: TrialRun, state: State, candidate: Candidate | None, *, cause: str = ""
    ) -> None:
        self._tracker.trial(
            run.record(
                state,
                candidate,
                cause=cause,
                channels=self._space.dense_widths,
                dense_params=self._dense.score.params,
                tags=self._tags,
            )
        )

    def _search_stages(self, budget: int | None, done: int) -> list[Stage]:
        """Return what bounds the search, in trials and in epochs; the last one is shown."""
        stages = [] if budget is None else [Stage("search", budget, done)]
        if self._budget_epochs is not None:
            stages.append(Stage("search", self._budget_epochs, self._spent, unit="epochs"))
        return stages

    def _report_search(
        self, stages: Sequence[Stage], done: int, ended: EndedTrial | None = None
    ) -> None:
        """Report how far the search has come; it is over when the first of its bounds is met."""
        trained = self._spent + sum(run.epochs for run in self._running.values())
        etas = [
            stage.eta(trained, reserved=self._reserved_epochs())
            if stage.unit
            else stage.eta(done + self._partly())
            for stage in stages
        ]
        eta = min((eta for eta in etas if eta is not None), default=None)
        self._report(stages[-1], trained if stages[-1].unit else done, ended, eta=eta)

    def _partly(self) -> float:
        """Return how many trials' worth of epochs those under way have trained."""
        running = [run.standing() for run in self._running.values()]
        return sum(r.epoch / r.epochs for r in running)

    def _report(
        self, stage: Stage, done: int, ended: EndedTrial | None = None, *, eta: float | None
    ) -> None:
        running = [run.standing() for run in self._running.values()]
        self._reporter.update(
            Status(
                stage=stage.name,
                done=done,
                total=stage.total,
                unit=stage.unit,
                metric=self._metric,
                dense_params=self._dense.score.params,
                dense_valid=self._dense.score.valid,
                running=running,
                front=[
                    FrontPoint(c.name, c.score.params, c.score.valid, c.score.latency)
                    for c in self.front()
                ],
                ended=ended,
                eta_seconds=eta,
            )
        )

    def front(self) -> list[Candidate]:
        """Return the candidates that no other dominates in the objectives."""
        return front_of(
            self._with_weights(),
            higher_is_better=self._higher_is_better,
            costs=self._costs,
        )


def _clear_queue(study: optuna.Study) -> None:
    """Fail what an interrupted final stage left behind: the front may have changed since."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(frozen.number, state=TrialState.FAIL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)
