"""One run of a search on an output folder that is ours: dense model, search, front, export."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from autoprune import jobs
from autoprune.asking import ended_trials
from autoprune.dense import SENSITIVITY_LIMIT, Dense, note_sensitivity, prepare_dense
from autoprune.driver import Driver
from autoprune.errors import AutopruneError, is_full, without_room
from autoprune.finale import Finale, UnexpectedError
from autoprune.joined import Crew
from autoprune.progress import Reporter, Status
from autoprune.pruning.cost import CostModel
from autoprune.pruning.files import read_json
from autoprune.pruning.groups import Grouping
from autoprune.results.mlflow_api import import_mlflow
from autoprune.results.records import RunStatus
from autoprune.results.result import SearchResult
from autoprune.results.sensitivities import sensitivity_files
from autoprune.results.store import Store
from autoprune.results.tracking import MlflowTracker, NullTracker, Tracker
from autoprune.running.cluster import Cluster
from autoprune.running.executor import Executor, Opening, reference
from autoprune.running.freight import Luggage
from autoprune.running.inline import InlineExecutor
from autoprune.running.interrupts import InterruptibleExecutor
from autoprune.running.local import LocalExecutor
from autoprune.running.ray import RayExecutor
from autoprune.searching.allocation import Allocator
from autoprune.searching.candidate import FINAL, Candidate, Score, trial_name
from autoprune.searching.depth import Depth
from autoprune.searching.journal import open_journal
from autoprune.searching.objectives import cost_of
from autoprune.searching.optuna_study import (
    ended_counts,
    open_study,
    quiet_optuna,
    trained_epochs,
)
from autoprune.searching.proxies import EPOCH0, PREDICTED, Correlation, correlations, epoch0
from autoprune.searching.sampler import PruningSampler, SamplerContext, make_sampler
from autoprune.searching.space import SearchSpace, choices
from autoprune.settings import Settings
from autoprune.shipping import Shipping
from autoprune.study import PruningStudy
from autoprune.tracked import dense_record, search_params, search_tags, setting_tags, totals
from autoprune.training.device import OwnRandomState, kernel_caches, worker_environments


class SearchRun:
    """One run of a search, from a checked study to exported models."""

    def __init__(
        self,
        *,
        study: PruningStudy,
        settings: Settings,
        grouping: Grouping,
        space: SearchSpace,
        costs: tuple[str, ...],
        store: Store,
        search_id: str,
        reporter: Reporter,
        opening: Opening,
        identity: Mapping[str, Any],
        storage: BaseStorage | None = None,
        cluster: tuple[Cluster, Luggage] | None = None,
    ) -> None:
        self.study = study
        self.settings = settings
        self.grouping = grouping
        self.space = space
        self.costs = costs
        self.store = store
        self.reporter = reporter
        self.opening = opening
        self.cluster = cluster
        self.cost = CostModel(grouping)
        self.search_id = search_id
        self.identity = identity
        self.crew = Crew(search_id[:8]) if settings.join else None
        self.storage = storage
        """Where the Optuna study is; None for a journal file in the folder."""
        self.tracker = self._open_tracker(search_id)

    def run(self) -> SearchResult:
        """Dense model, search, final stage, export: each step reuses what is on disk already."""
        deadline = None
        if self.settings.timeout is not None:
            deadline = time.monotonic() + self.settings.timeout
        self.store.save_grouping(self.grouping)
        self.tracker.start(
            search_params(self.study, self.grouping),
            setting_tags(self.settings) | search_tags(self.study),
        )
        opened = self._open_executor()
        if isinstance(opened, LocalExecutor):
            opened.warm_up()  # while one of them prepares the dense model
        executor = InterruptibleExecutor(opened)
        status: RunStatus = "FAILED"
        counts: dict[str, float] = {}
        try:
            with quiet_optuna(), executor.holding_back():
                result, counts = self._run_stages(executor, deadline)
            status = "FINISHED"
            return result
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except OSError as error:
            if is_full(error):
                raise without_room(error, self.store.root) from error
            raise
        finally:
            executor.close()
            if self.settings.tracking_uri != "none":
                self.reporter.update(Status(stage="recording"))
            for problem in self.tracker.finish(counts, status=status):
                self.reporter.note(problem)

    def _run_stages(
        self, executor: InterruptibleExecutor, deadline: float | None
    ) -> tuple[SearchResult, dict[str, float]]:
        study, final_study = self._optuna_study(""), self._optuna_study(FINAL)
        if self.crew is not None:
            self.crew.enter(study, self.identity, self.store.root)
        dense = prepare_dense(
            self.study, self.store, executor, self.reporter, latency=self._latency
        )
        self.tracker.dense(
            dense_record(self.study, dense.score, prepared=self.store.dense_prepared)
        )
        for each in (study, final_study):
            each.sampler = self._sampler(dense, trials=len(each.get_trials(deepcopy=False)))
        driver = self._driver(executor, dense)
        spent = trained_epochs(study) + trained_epochs(final_study)
        driver.resume(study, final_study, spent=spent)
        self.tracker.settle(ended_trials(study, final_study))
        try:
            driver.search(study, budget=self.settings.budget, deadline=deadline)
        except KeyboardInterrupt:
            driver.park(study)
            self._export_so_far(executor, dense, driver, study, final_study)
            raise
        if not driver.pool.candidates:
            bounds = "--budget, --budget-epochs or --timeout"
            if self.crew is not None:
                bounds = "--budget, which the other drivers have used up, or --timeout"
            raise AutopruneError(f"No trial was completed, so there is no front. Raise {bounds}.")
        if not driver.pool.front():
            raise AutopruneError(
                f"A completed trial must still have its weights in {self.store.root}, but "
                f"none has, so there is no front. Raise --budget, or start over with --fresh."
            )
        if isinstance(study.sampler, PruningSampler) and (advice := study.sampler.advice(study)):
            self.reporter.note(advice)
        try:
            chosen = self._finish(driver, final_study)
        except KeyboardInterrupt:
            driver.park(final_study)
            self._export_so_far(executor, dense, driver, study, final_study)
            raise
        self.store.drop_checkpoints()
        if self.settings.extras:
            note_sensitivity(self.study, self.store, executor, self.reporter)
        return self._export(executor, dense, chosen, driver, study, final_study)

    def _finish(self, driver: Driver, study: optuna.Study) -> dict[str, Candidate]:
        if self.study.final_epochs:
            return driver.finish(study, epochs=self.study.final_epochs)
        return {c.name: c for c in driver.pool.front()}

    def _export_so_far(
        self,
        executor: InterruptibleExecutor,
        dense: Dense,
        driver: Driver,
        study: optuna.Study,
        final_study: optuna.Study,
    ) -> None:
        """Export what an interrupted search has found; a second interrupt leaves that, too."""
        if not driver.pool.front():
            return
        self.reporter.note("Stopping: the front so far is exported. Stop again to leave that out.")
        executor.renew(self._open_executor)
        chosen = {c.name: driver.pool.better(c) for c in driver.pool.front()}
        try:
            self._export(executor, dense, chosen, driver, study, final_study)
        except (AutopruneError, UnexpectedError) as error:
            self.reporter.note(f"The front so far could not be exported: {error}")

    # --- the parts --------------------------------------------------------------------------

    def _open_executor(self) -> Executor:
        limit = self.settings.trial_timeout
        limits = {reference(jobs.sensitivity): min(SENSITIVITY_LIMIT, limit or math.inf)}
        if limit is not None:
            limits[reference(jobs.evaluate)] = limit
        if self.cluster is not None:
            return self._on_cluster(*self.cluster, limits)
        workers = self.settings.worker_count()
        if workers == 0:
            return InlineExecutor(self.opening, around=OwnRandomState())
        return LocalExecutor(
            self.opening,
            workers=workers,
            log_folder=self.store.logs,
            environments=self._environments(),
            limits=limits,
        )

    def _on_cluster(
        self, cluster: Cluster, luggage: Luggage, limits: Mapping[str, float]
    ) -> Executor:
        workers = self.settings.workers
        return RayExecutor(
            cluster,
            self.opening,
            root=self.store.root,
            log_folder=self.store.logs,
            workers=None if workers == "auto" else workers,
            freight=Shipping(self.store),
            luggage=luggage,
            environment=self._kernels(),
            limits=limits,
        )

    def _environments(self) -> list[dict[str, str]]:
        """Return the variables that workers get, in turn."""
        own = worker_environments() if self.study.device == "auto" else [{}]
        return [self._kernels() | each for each in own]

    def _kernels(self) -> dict[str, str]:
        return kernel_caches(sum(len(shape) > 1 for shape in self.grouping.shapes.values()))

    def _open_tracker(self, search_id: str) -> Tracker:
        uri = self.settings.tracking_uri
        if uri == "none":
            return NullTracker()
        if self.settings.workers == 0:
            # Its thread would import pandas and polars under the hands of the jobs: scikit-learn
            # takes whatever of them is there already, half imported or not.
            with suppress(Exception):  # the thread tells
                import_mlflow()
        return MlflowTracker(
            self.store,
            uri=uri,
            experiment=self.settings.experiment,
            search=search_id,
            name=self.study.name,
        )

    def _optuna_study(self, suffix: str) -> optuna.Study:
        objectives = [(self.study.task.metric, self.study.task.higher_is_better)]
        objectives += [(name, False) for name in self.costs]
        if self.settings.objective == "weighted":
            objectives = [("weighted", True)]
        if self.settings.storage is None:
            if self.storage is None:
                self.storage = open_journal(self.store.journal)
            return open_study(self.study.name + suffix, storage=self.storage, objectives=objectives)
        assert self.storage is not None
        # Others may keep studies there too: the search's id keeps ours apart.
        name = f"{self.settings.join or self.study.name}-{self.search_id[:8]}{suffix}"
        if self.settings.join is not None and suffix != FINAL:
            name = self.settings.join
        return open_study(name, storage=self.storage, objectives=objectives)

    def _sampler(self, dense: Dense, *, trials: int) -> BaseSampler:
        if isinstance(self.settings.sampler, BaseSampler):
            return self.settings.sampler
        allocator = Allocator(
            self.cost,
            sensitivity=dense.sensitivity,
            lamp=dense.lamp,
            allowed=self.space.allowed,
        )
        return make_sampler(
            self.settings.sampler,
            SamplerContext(
                space=self.space,
                allocator=allocator,
                budget=self._expected_trials,
                budget_epochs=self.settings.budget_epochs,
                seed=self.study.seed,
                trials=trials,
                higher_is_better=self.study.task.higher_is_better,
                costs=self.costs,
                inherit=self.settings.inherit,
                strategy=self.settings.strategy,
                depth=Depth(self.space.blocks, dense.blocks),
                noise=dense.noise,
            ),
        )

    @property
    def _expected_trials(self) -> int:
        """How many trials the budget lasts for, as far as that can be said before."""
        bounds = [self.settings.budget]
        if self.settings.budget_epochs is not None:
            ends = choices(self.study.space.epochs)
            usual = math.sqrt(ends[0] * ends[-1])  # epochs are searched on a log scale
            bounds.append(max(round(self.settings.budget_epochs / usual), 1))
        return min(bound for bound in bounds if bound is not None)

    def _driver(self, executor: Executor, dense: Dense) -> Driver:
        return Driver(
            space=self.space,
            cost=self.cost,
            store=self.store,
            executor=executor,
            tracker=self.tracker,
            reporter=self.reporter,
            dense=dense.score,
            metric=self.study.task.metric,
            higher_is_better=self.study.task.higher_is_better,
            seed=self.study.seed,
            values=self._values(dense),
            costs=self.costs,
            latency=self._latency,
            early_stop=self.settings.stops_early,
            inherit=self.settings.inherit,
            budget_epochs=self.settings.budget_epochs,
            final_epochs=self.study.final_epochs,
            tags=search_tags(self.study),
            crew=self.crew,
        )

    @property
    def _latency(self) -> dict[str, Any] | None:
        """How trials' latency is measured, if it is."""
        return self.settings.latency if "latency" in self.costs else None

    def _values(self, dense: Dense) -> Callable[[Score], float | list[float]]:
        if self.settings.objective == "pareto":
            return lambda score: [score.valid, *(cost_of(score, name) for name in self.costs)]
        weight = self.settings.accuracy_weight
        sign = 1.0 if self.study.task.higher_is_better else -1.0

        def weighted(score: Score) -> float:
            removed = 1.0 - score.params / dense.score.params
            return weight * sign * score.valid + (1.0 - weight) * removed

        return weighted

    def _export(
        self,
        executor: Executor,
        dense: Dense,
        chosen: Mapping[str, Candidate],
        driver: Driver,
        study: optuna.Study,
        final_study: optuna.Study,
    ) -> tuple[SearchResult, dict[str, float]]:
        """Export the front of `chosen`; return it, and the totals of the search."""
        epochs = trained_epochs(study) + trained_epochs(final_study)
        proxies = _proxies(study, list(driver.pool.candidates.values()))
        finale = Finale(
            study=self.study,
            store=self.store,
            grouping=self.grouping,
            executor=executor,
            reporter=self.reporter,
            costs=self.costs,
            latency=self.settings.latency,
            extras=self.settings.extras,
        )
        result = finale.export(
            dense=dense.score,
            chosen=chosen,
            trials=ended_counts(study),
            epochs=epochs,
            proxies={name: asdict(found) for name, found in proxies.items()},
        )
        pictures = finale.pictures(
            read_json(self.store.front_file), list(driver.pool.candidates.values()), study
        )
        front = finale.front(chosen)
        self.tracker.front(
            finale.tracked(result, front),
            [self.store.front_file, *pictures, *sensitivity_files(self.store)],
            finale.overview(result, front, register=self.settings.register),
        )
        return result, totals(result, dense=dense.score, epochs=epochs, proxies=proxies)


def _proxies(study: optuna.Study, candidates: list[Candidate]) -> dict[str, Correlation]:
    """Say how well what was known of trials before their training told what came of it."""
    predicted = {
        trial_name(t.number): t.user_attrs[PREDICTED]
        for t in study.get_trials(deepcopy=False)
        if PREDICTED in t.user_attrs
    }
    known = {EPOCH0: epoch0(candidates), **({PREDICTED: predicted} if predicted else {})}
    return correlations(candidates, known)
