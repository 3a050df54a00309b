"""The loop: ask, choose a parent, run, stop the dominated, tell.

The driver, with its asker and its teller, alone writes to Optuna and MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState

from autoprune import jobs
from autoprune.account import Account
from autoprune.asking import Asker, awaited_parents, clear_queue, waiting_count
from autoprune.errors import AutopruneError, RoomError
from autoprune.joined import DRIVER, Crew, give_back
from autoprune.pool import Pool
from autoprune.progress import EndedTrial, Reporter, Stage
from autoprune.pruning.cost import CostModel
from autoprune.recovery import Recovery
from autoprune.results.store import Store
from autoprune.results.tracking import Tracker
from autoprune.running.executor import Done, Event, Executor, Failed, Progress
from autoprune.running.threads import quick_turns
from autoprune.searching.attributes import (
    CAUSE,
    EPOCHS,
    INTERRUPTED,
    PARAMS,
    PARENT,
    RESUMED,
    VALID,
    WORK,
)
from autoprune.searching.candidate import DENSE, Candidate, Score
from autoprune.searching.lineage import lineage_of
from autoprune.searching.objectives import DEFAULT_COSTS, cost_of
from autoprune.searching.space import SearchSpace
from autoprune.searching.stopping import StoppingRule
from autoprune.telling import Teller
from autoprune.training.checkpoint import SECONDS
from autoprune.trialrun import TrialRun

CHECKPOINT_SECONDS = SECONDS
"""Least time between two checkpoints of a trial."""
FAILURES_IN_A_ROW = 5
"""After so many, something is wrong with more than one plan."""
Values = Callable[[Score], float | list[float]]
"""Turns a score into what Optuna is told."""


class Driver:
    """Runs trials of an Optuna study on an executor.

    Parameters
    ----------
    dense
        The dense model's score.
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
    crew
        The drivers that share the study; None if this one has it to itself.

    Attributes
    ----------
    pool
        What has been finished.
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
        dense: Score,
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
        crew: Crew | None = None,
    ) -> None:
        self.pool = Pool(store, higher_is_better=higher_is_better, costs=costs, inherit=inherit)
        self._store = store
        self._executor = executor
        self._values = values
        self._costs = tuple(costs)
        self._crew = crew
        self._latency = latency
        self._rule = StoppingRule(higher_is_better=higher_is_better)
        self._running: dict[str, TrialRun] = {}
        self._failures = 0
        self._losses: dict[str, float] = {}
        """When a machine was last lost, by its name."""
        self._account = Account(self.pool, budget=budget_epochs, final_epochs=final_epochs)
        self._asker = Asker(
            space=space, cost=cost, pool=self.pool, seed=seed, early_stop=early_stop
        )
        self._teller = Teller(
            tracker=tracker,
            reporter=reporter,
            metric=metric,
            dense=dense,
            channels=space.dense_widths,
            tags=tags or {},
            pool=self.pool,
            account=self._account,
            under_way=self._running.values(),
        )
        self._recovery = Recovery(
            asker=self._asker,
            store=store,
            pool=self.pool,
            values=values,
            note=reporter.note,
            mine=crew.is_mine if crew else lambda _: True,
        )

    # --- the search -------------------------------------------------------------------------

    def resume(
        self, study: optuna.Study, final_study: optuna.Study | None = None, *, spent: int = 0
    ) -> None:
        """Take up what an earlier run finished; what it left running is tried again.

        `spent` is how many epochs it has trained.
        """
        self._account.spent = spent
        self._teller.begin()
        for each in (study, final_study):
            if each is not None:
                self._recovery.take_up(each)
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
        with quick_turns():
            self._search(study, budget=budget, deadline=deadline)

    def _search(self, study: optuna.Study, *, budget: int | None, deadline: float | None) -> None:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        done = len(study.get_trials(deepcopy=False, states=states))
        stages = self._teller.search_stages(budget, done)
        while True:
            while (
                len(self._running) < self._executor.slots
                and (budget is None or self._taken(study, done) < budget)
                and (deadline is None or time.monotonic() < deadline)
                and (left := self._epochs_left()) >= 1
            ):
                run = self._asker.ask(study, epochs_left=left)
                if not self._claimed(study, run, budget):
                    break
                self._start(run)
                self._teller.search(stages, done)
            if not self._running:
                return
            ended = self._handle(study, self._executor.next_event())
            if ended is not None:
                done += ended.state != "failed"
                self._drop_weights(study)
            if self._crew is not None:
                done = self._crew.done(study)
            self._teller.search(stages, done, ended)

    def _taken(self, study: optuna.Study, done: int) -> int:
        """Return how many trials of the budget are done or under way."""
        return done + len(self._running) if self._crew is None else self._crew.taken(study)

    def _claimed(self, study: optuna.Study, run: TrialRun, budget: int | None) -> bool:
        """Return whether a trial is ours to run: the crew's budget may have been used up by now."""
        if self._crew is None:
            return True
        run.note(**{DRIVER: self._crew.driver})
        if budget is None or not self._crew.is_surplus(study, run.trial.number, budget):
            return True
        give_back(study, run.trial)
        return False

    def _epochs_left(self) -> float:
        under_way = sum(run.planned_epochs for run in self._running.values())
        return self._account.left(under_way=under_way)

    def _drop_weights(self, study: optuna.Study) -> None:
        """Delete the weights of candidates that are on no front and that nobody waits for."""
        awaited = {running.parent for running in self._running.values()} | awaited_parents(study)
        for name in self.pool.unneeded(awaited=awaited):
            self.pool.drop_weights(name, sparsified=self._asker.sparsified(study, name))

    # --- the final stage --------------------------------------------------------------------

    def finish(self, study: optuna.Study, *, epochs: int) -> dict[str, Candidate]:
        """Fine-tune the front longer, each model from its own weights, in a study of its own.

        Where fewer epochs are left than that takes, the lowest scores go first: they have the most
        to gain, and the rest of the front stays as it is.

        Returns, by name of the front's candidate, the better of it and its final stage: they are
        of one size, and of equals the longer trained one is taken.
        """
        front = self.pool.front()
        clear_queue(study)
        wanted = self.pool.without_final()
        waiting = self._account.affordable(wanted, epochs)
        if len(waiting) < len(wanted):
            self._teller.left_out(len(wanted) - len(waiting), of=len(wanted))
        # The largest take longest: last, they would keep a worker when the others are done.
        waiting.sort(key=lambda candidate: candidate.score.params, reverse=True)
        self._asker.enqueue_finals(study, waiting)
        stage, done = Stage(name="final", total=len(waiting)), 0
        while (queued := waiting_count(study)) or self._running:
            while queued and len(self._running) < self._executor.slots:
                queued -= 1
                self._start(self._asker.ask_final(study, epochs=epochs))
                self._teller.final(stage, done, epochs=epochs)
            ended = self._handle(study, self._executor.next_event())
            done += ended is not None
            self._teller.final(stage, done, ended, epochs=epochs)
        return {c.name: self.pool.better(c) for c in front}

    # --- one trial --------------------------------------------------------------------------

    def _start(self, running: TrialRun) -> None:
        self._running[running.name] = running
        running.note(
            **{PARENT: running.parent, WORK: running.work},
            lineage=lineage_of(running.parent, self.pool.candidates),
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
            checkpoint={"name": running.work, "seconds": CHECKPOINT_SECONDS},
        )

    def _handle(self, study: optuna.Study, event: Event) -> EndedTrial | None:
        running = self._running[event.job]
        if isinstance(event, Progress):
            self._hear(running, event.value)
            return None
        del self._running[event.job]
        self._account.spent += running.spent
        if isinstance(event, Failed):
            if event.stops:  # it is tried again when the search goes on
                raise RoomError(event.cause)
            return self._fail(study, running, event.cause, again=event.died, place=event.place)
        assert isinstance(event, Done)
        if running.stopped:
            ended = self._stop(study, running)
        else:
            ended = self._complete(study, running, event.value)
        if ended.state != "failed":
            self._failures = 0
        return ended

    def _hear(self, running: TrialRun, value: Mapping[str, Any]) -> None:
        at_its_widths = running.hear(value)
        if self._account.budget is not None:  # they count even if this driver is killed
            running.note(**{EPOCHS: running.epochs, RESUMED: running.counted})
        if at_its_widths:
            running.stopped = running.may_stop and self._is_dominated(running)
        self._executor.answer(running.name, go_on=not running.stopped)

    def _is_dominated(self, running: TrialRun) -> bool:
        # Of the same size too: a cost that is not known yet will mostly follow it.
        compared = {"params", *self._costs}
        return self._rule.dominated(
            costs={n: cost for n, cost in running.costs.items() if n in compared},
            epochs=running.plan.finetune.epochs,
            earlier_epochs=len(running.earlier),
            curve=running.curve,
            completed=self.pool.candidates.values(),
            inherits=running.parent != DENSE,
        )

    def _complete(
        self, study: optuna.Study, running: TrialRun, result: Mapping[str, Any]
    ) -> EndedTrial:
        problem = running.mismatch(result["params"])
        if problem is not None:
            return self._fail(study, running, problem)
        candidate = running.candidate(result)
        score = candidate.score
        running.note(
            **{VALID: score.valid, PARAMS: score.params},
            **{name: cost_of(score, name) for name in self._costs if name != PARAMS},
            curve=running.curve,
            seconds=result["seconds"],
            **running.attributes,
        )
        with self._teller.recording(running, "complete", candidate):
            self._store.save_candidate(candidate)
            study.tell(running.trial.number, self._values(score))
        self._store.drop_checkpoint(running.work)
        if not running.is_final:
            self.pool.add(candidate)
        return running.ended("complete")

    def _stop(self, study: optuna.Study, running: TrialRun) -> EndedTrial:
        # Its curve goes into an attribute: TPE cannot read a pruned trial of several objectives
        # that carries intermediate values.
        running.note(curve=running.curve, **running.attributes)
        with self._teller.recording(running, "stopped"):
            study.tell(running.trial.number, state=TrialState.PRUNED)
        self._store.drop_checkpoint(running.work)
        return running.ended("stopped")

    def _fail(
        self,
        study: optuna.Study,
        running: TrialRun,
        cause: str,
        *,
        again: bool = False,
        place: str = "",
    ) -> EndedTrial:
        running.note(**{CAUSE: cause}, **running.attributes)
        self._store.drop_weights(running.name)
        if again:
            self._asker.try_again(study, running.trial, counted=True)
        else:
            self._store.drop_checkpoint(running.work)
        with self._teller.recording(running, "failed", cause=cause):
            study.tell(running.trial.number, state=TrialState.FAIL)
        # All trials that one machine takes with it are one failure.
        if running.started > self._losses.get(place, 0.0):
            self._failures += 1
            self._losses |= {place: time.time()} if place else {}
        if self._failures >= FAILURES_IN_A_ROW:
            raise AutopruneError(
                f"{self._failures} trials in a row failed, so the search stops. "
                f"The last one: {cause}"
            )
        return running.ended("failed", cause)

    def park(self, study: optuna.Study) -> None:
        """Give up the trials under way, as when the user stops the search."""
        for running in self._running.values():
            self._account.spent += running.spent
            running.note(**{CAUSE: INTERRUPTED}, **running.attributes)
            if not running.is_final:
                self._asker.try_again(study, running.trial, counted=False)
            with self._teller.recording(running, "failed", cause=INTERRUPTED):
                study.tell(running.trial.number, state=TrialState.FAIL)
        self._running.clear()
