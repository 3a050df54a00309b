"""A search from beginning to end, in one place, readable top to bottom."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from torch import nn

from autoprune import __version__, jobs
from autoprune.driver import FINAL, Dense, Driver
from autoprune.errors import AutopruneError
from autoprune.progress import Reporter, SilentReporter, Status
from autoprune.pruning.cost import CostModel
from autoprune.pruning.files import read_json, write_json
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import fingerprint
from autoprune.results.export import METRICS, reference_file, reference_layout, verify
from autoprune.results.figures import front_figure, front_picture
from autoprune.results.result import SearchResult, open_result
from autoprune.results.store import Store
from autoprune.results.tracking import FrontModel, MlflowTracker, NullTracker, Tracker
from autoprune.running.executor import Done, Executor, Failed, JobFunction, Opening, Progress
from autoprune.running.executor import reference as reference_to
from autoprune.running.inline import InlineExecutor
from autoprune.running.local import LocalExecutor
from autoprune.searching.allocation import Allocator
from autoprune.searching.candidate import DENSE, Candidate, Score
from autoprune.searching.pareto import front_of
from autoprune.searching.sampler import SamplerContext, check_sampler, make_sampler
from autoprune.searching.space import SearchSpace
from autoprune.study import PruningStudy, load_study, overridden, source_of
from autoprune.training.finetune import dropout_layers

Objective = Literal["pareto", "weighted"]
DEFAULT_FOLDER = "autoprune-runs"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to search, as opposed to what.

    Raises
    ------
    AutopruneError
        If a value breaks its rule.
    """

    budget: int = 50
    """Trials that end as complete or stopped."""
    timeout: float | None = None
    """Seconds after which no new trial begins."""
    workers: int | Literal["auto"] = "auto"
    """Worker processes; ``auto`` is one per core (or GPU), 0 runs trials in this process."""
    sampler: str | BaseSampler = "pruning"
    objective: Objective = "pareto"
    accuracy_weight: float = 0.8
    """Weight of the score against the share of parameters removed, for ``weighted``."""
    early_stop: bool = True
    storage: str | None = None
    """An Optuna storage URL; by default a journal file in the output folder."""
    tracking_uri: str | None = None
    """An MLflow tracking URI; by default a database in the output folder; ``none`` for none."""
    experiment: str = "autoprune"

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or self.budget < 1:
            raise AutopruneError(f"`budget` must be at least 1 trial, but is {self.budget}.")
        if self.timeout is not None and not self.timeout > 0:
            raise AutopruneError(f"`timeout` must be more than 0 seconds, but is {self.timeout}.")
        if self.workers != "auto" and (not isinstance(self.workers, int) or self.workers < 0):
            raise AutopruneError(
                f"`workers` must be 'auto' or at least 0, but is {self.workers!r}."
            )
        if isinstance(self.sampler, str):
            check_sampler(self.sampler)
        if self.objective not in ("pareto", "weighted"):
            raise AutopruneError(
                f"`objective` must be 'pareto' or 'weighted', but is {self.objective!r}."
            )
        if not 0 <= self.accuracy_weight <= 1:
            raise AutopruneError(
                f"`accuracy_weight` must be between 0 and 1, but is {self.accuracy_weight}."
            )

    def worker_count(self) -> int:
        if self.workers != "auto":
            return self.workers
        import torch

        return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def search(
    study: PruningStudy | str | Path = "digits",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    criteria: Sequence[str] | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> SearchResult:
    """Search for smaller models that nobody could improve on both counts at once.

    Parameters
    ----------
    study
        A `PruningStudy`, the path of a study file, or the name of a built-in study.
    out
        Where everything goes; by default ``autoprune-runs/<study name>``. A folder that holds this
        very search is gone on with.
    seed, criteria
        Replace the study's own.
    reporter
        Is told where the search stands.
    **settings
        The fields of `Settings`: ``budget``, ``timeout``, ``workers``, ``sampler``, ``objective``,
        ``accuracy_weight``, ``early_stop``, ``storage``, ``tracking_uri``, ``experiment``.

    Raises
    ------
    AutopruneError
        If something in the study or the settings must be mended first; nothing is written then.

    Examples
    --------
    >>> result = autoprune.search("digits", budget=50)  # doctest: +SKIP
    >>> result.best(min_accuracy=0.98).params  # doctest: +SKIP
    """
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise TypeError(f"search() got unexpected arguments: {', '.join(sorted(unknown))}")
    chosen = Settings(**settings)
    loaded = load_study(study) if not isinstance(study, PruningStudy) else study
    loaded = overridden(loaded, seed=seed, criteria=criteria)
    origin: PruningStudy | Path = loaded if isinstance(study, PruningStudy) else _path_of(study)
    model = jobs.dense_model(loaded)
    grouping = prunable_groups(loaded, model)
    space = SearchSpace(
        channels=grouping.channels,
        space=loaded.space,
        has_dropout=bool(dropout_layers(model)),
        fixed_batch_size=getattr(loaded.task, "fixed_batch_size", None),
    )
    store = Store(out if out is not None else Path(DEFAULT_FOLDER) / loaded.name)
    known = store.open(_identity(loaded, grouping, space, chosen))
    with store.locked():
        session = _Session(
            study=loaded,
            settings=chosen,
            grouping=grouping,
            space=space,
            store=store,
            search_id=known["id"],
            reporter=reporter or SilentReporter(),
            opening=_opening(origin, store, chosen, seed=seed, criteria=criteria),
        )
        return session.run()


def prunable_groups(study: PruningStudy, model: nn.Module) -> Grouping:
    """Find the channel groups of the study's model; raise `AutopruneError` if there are none."""
    grouping = find_groups(model, study.example, keep=study.keep)
    if not grouping.groups:
        reasons = "; ".join(f"{b.layer}: {b.reason}" for b in grouping.blocked[:4])
        raise AutopruneError(
            f"A model must have at least one group of channels that can be pruned, "
            f"but this one has none ({reasons or 'it has no layers with weights'})."
        )
    return grouping


def _path_of(study: str | Path) -> Path:
    from autoprune.study import find_study_file

    return find_study_file(study).resolve()


def _opening(
    origin: PruningStudy | Path,
    store: Store,
    settings: Settings,
    *,
    seed: int | None,
    criteria: Sequence[str] | None,
) -> Opening:
    if settings.worker_count() == 0 and isinstance(origin, PruningStudy):
        return _InProcess(origin, store)
    source = asdict(source_of(origin))
    if not isinstance(origin, PruningStudy):
        source |= {"seed": seed, "criteria": criteria and list(criteria)}
    spec = {
        "source": source,
        "out": str(store.root),
        "own_process": settings.worker_count() > 0,
    }
    return Opening(function=reference_to(jobs.open_workbench), spec=spec)


class _InProcess(Opening):
    """Opens the workbench on the very study object that the caller passed."""

    def __init__(self, study: PruningStudy, store: Store) -> None:
        super().__init__(function=reference_to(jobs.open_workbench), spec=None)
        object.__setattr__(self, "_made", (study, store))

    def __call__(self) -> Any:
        study, store = self._made  # type: ignore[attr-defined]
        return jobs.Workbench(study, store)


def _identity(
    study: PruningStudy, grouping: Grouping, space: SearchSpace, settings: Settings
) -> dict[str, Any]:
    """Return what must be the same for two runs to be one search."""
    return {
        "study": study.name,
        "model": fingerprint(grouping),
        "space": {name: str(value) for name, value in space.distributions.items()},
        "metric": study.task.metric,
        "higher_is_better": study.task.higher_is_better,
        "objective": settings.objective,
        "accuracy_weight": settings.accuracy_weight if settings.objective == "weighted" else None,
        "seed": study.seed,
    }


class _Session:
    """One run of a search on an output folder that is ours."""

    def __init__(
        self,
        *,
        study: PruningStudy,
        settings: Settings,
        grouping: Grouping,
        space: SearchSpace,
        store: Store,
        search_id: str,
        reporter: Reporter,
        opening: Opening,
    ) -> None:
        self.study = study
        self.settings = settings
        self.grouping = grouping
        self.space = space
        self.store = store
        self.reporter = reporter
        self.opening = opening
        self.cost = CostModel(grouping)
        self.tracker = self._open_tracker(search_id)

    def run(self) -> SearchResult:
        """Dense model, search, final stage, export: each step reuses what is on disk already."""
        deadline = None
        if self.settings.timeout is not None:
            deadline = time.monotonic() + self.settings.timeout
        self.store.save_grouping(self.grouping)
        self.tracker.start(self._tracked_params(), self._setting_tags() | self._tracked_tags())
        executor = self._open_executor()
        status = "FAILED"
        counts: dict[str, float] = {}
        try:
            dense = self._dense(executor)
            driver = self._driver(executor, dense)
            study = self._optuna_study("", dense)
            final_study = self._optuna_study(FINAL, dense)
            driver.resume(study)
            try:
                driver.search(study, budget=self.settings.budget, deadline=deadline)
                chosen = self._finish(driver, final_study)
            except KeyboardInterrupt:
                driver.park(study)
                status = "KILLED"
                raise
            result = self._export(executor, dense, chosen, study, driver)
            status = "FINISHED"
            counts = {f"trials_{state}": n for state, n in result.trials.items()}
            counts |= {"front_size": len(result.front), "dense_valid": dense.score.valid}
            return result
        finally:
            executor.close()
            self.reporter.update(Status(stage="recording"))
            for problem in self.tracker.finish(counts, status=status):
                self.reporter.note(problem)

    # --- the parts --------------------------------------------------------------------------

    def _open_executor(self) -> Executor:
        workers = self.settings.worker_count()
        if workers == 0:
            return InlineExecutor(self.opening)
        return LocalExecutor(self.opening, workers=workers, log_folder=self.store.logs)

    def _open_tracker(self, search_id: str) -> Tracker:
        uri = self.settings.tracking_uri
        if uri == "none":
            return NullTracker()
        return MlflowTracker(
            uri=uri or f"sqlite:///{self.store.mlflow_database}",
            experiment=self.settings.experiment,
            search=search_id,
            name=self.study.name,
            artifacts=self.store.mlflow_artifacts if uri is None else None,
        )

    def _optuna_study(self, suffix: str, dense: Dense) -> optuna.Study:
        storage: Any = self.settings.storage
        if storage is None:
            storage = _journal(self.store.journal)
        best = StudyDirection.MAXIMIZE
        score = best if self.study.task.higher_is_better else StudyDirection.MINIMIZE
        directions = [score, StudyDirection.MINIMIZE]
        names = [self.study.task.metric, "params"]
        if self.settings.objective == "weighted":
            directions, names = [best], ["weighted"]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            storage=storage,
            study_name=f"{self.study.name}{suffix}",
            directions=directions,
            load_if_exists=True,
        )
        study.sampler = self._sampler(dense, trials=len(study.get_trials(deepcopy=False)))
        if study.metric_names is None:
            _name_metrics(study, names)
        return study

    def _sampler(self, dense: Dense, *, trials: int) -> BaseSampler:
        if isinstance(self.settings.sampler, BaseSampler):
            return self.settings.sampler
        allocator = Allocator(
            self.cost, sensitivity=dense.sensitivity, lowest=self.space.minimum_widths()
        )
        return make_sampler(
            self.settings.sampler,
            SamplerContext(
                space=self.space,
                allocator=allocator,
                budget=self.settings.budget,
                seed=self.study.seed,
                trials=trials,
                higher_is_better=self.study.task.higher_is_better,
            ),
        )

    def _driver(self, executor: Executor, dense: Dense) -> Driver:
        return Driver(
            space=self.space,
            cost=self.cost,
            store=self.store,
            executor=executor,
            tracker=self.tracker,
            reporter=self.reporter,
            dense=dense,
            metric=self.study.task.metric,
            higher_is_better=self.study.task.higher_is_better,
            seed=self.study.seed,
            values=self._values(dense),
            early_stop=self.settings.early_stop,
            tags=self._tracked_tags(),
        )

    def _values(self, dense: Dense) -> Callable[[Score], float | list[float]]:
        if self.settings.objective == "pareto":
            return lambda score: [score.valid, float(score.params)]
        weight = self.settings.accuracy_weight
        sign = 1.0 if self.study.task.higher_is_better else -1.0

        def weighted(score: Score) -> float:
            removed = 1.0 - score.params / dense.score.params
            return weight * sign * score.valid + (1.0 - weight) * removed

        return weighted

    def _dense(self, executor: Executor) -> Dense:
        if not self.store.dense_file.exists():
            self.reporter.update(Status(stage="dense"))

            def tell(value: Mapping[str, Any]) -> None:
                self.reporter.update(
                    Status(
                        stage="dense",
                        done=value["epoch"],
                        total=value["epochs"],
                        metric=self.study.task.metric,
                        dense_valid=value["valid"],
                    )
                )

            write_json(self.store.dense_file, _run_job(executor, jobs.prepare_dense, tell))
        value = read_json(self.store.dense_file)
        return Dense(
            score=Score(**{f: value[f] for f in Score.__dataclass_fields__}),
            sensitivity=value["sensitivity"],
        )

    def _finish(self, driver: Driver, study: optuna.Study) -> dict[str, Candidate]:
        if not driver.candidates:
            raise AutopruneError(
                "No trial was completed, so there is no front. Raise --budget or --timeout."
            )
        if self.study.final_epochs:
            try:
                return driver.finish(study, epochs=self.study.final_epochs)
            except KeyboardInterrupt:
                driver.park(study)
                raise
        front = front_of(
            driver.candidates.values(), higher_is_better=self.study.task.higher_is_better
        )
        return {c.name: c for c in front}

    # --- export -----------------------------------------------------------------------------

    def _export(
        self,
        executor: Executor,
        dense: Dense,
        chosen: Mapping[str, Candidate],
        study: optuna.Study,
        driver: Driver,
    ) -> SearchResult:
        """Export what is on the front after the final stage, prove it, and write ``front.json``."""
        front = front_of(chosen.values(), higher_is_better=self.study.task.higher_is_better)
        names = {candidate.name: name for name, candidate in chosen.items()}
        fresh = self.store.root / "front.new"
        shutil.rmtree(fresh, ignore_errors=True)
        exports = {
            names[c.name]: {
                "name": names[c.name],
                "weights": c.name,
                "folder": str(fresh / names[c.name]),
            }
            for c in front
        }
        answers = self._run_jobs(executor, jobs.export, exports, stage="export")
        folders = {name: fresh / name for name in exports}
        faults = self._faults(executor, folders)
        dense_test = _run_job(executor, jobs.test_score, name=DENSE)["test"]
        entries = []
        for candidate in front:
            name = names[candidate.name]
            entry = {
                **_entry(name, candidate.trial, candidate.score, answers[name]["test"]),
                "trial": driver.candidates[name].trial,
                "path": f"front/{name}",
                "formats": answers[name]["formats"],
                "problems": answers[name]["problems"] + faults[name],
                "verified": not faults[name],
            }
            for problem in entry["problems"]:
                self.reporter.note(f"{name}: {problem}")
            write_json(folders[name] / METRICS, {k: v for k, v in entry.items() if k != "path"})
            reference_file(folders[name]).unlink(missing_ok=True)
            reference_layout(folders[name]).unlink(missing_ok=True)
            entries.append(entry)
        shutil.rmtree(self.store.front, ignore_errors=True)
        fresh.rename(self.store.front)
        write_json(
            self.store.front_file,
            {
                "format": 1,
                "study": self.study.name,
                "metric": self.study.task.metric,
                "higher_is_better": self.study.task.higher_is_better,
                "seed": self.study.seed,
                "dense": {**_entry("dense", None, dense.score, dense_test), "path": "dense"},
                "front": entries,
                "trials": _counts(study),
                "blocked": [asdict(b) for b in self.grouping.blocked],
                "versions": versions(),
            },
        )
        self._track_front({names[c.name]: c for c in front}, driver)
        return open_result(self.store.root, build=self.study.build)

    def _faults(self, executor: Executor, folders: Mapping[str, Path]) -> dict[str, list[str]]:
        faults = verify(list(folders.values()))
        for name, folder in folders.items():
            answer = _run_job(executor, jobs.reload_check, folder=str(folder))
            faults[name] = [*faults[name], *answer["faults"]]
        return faults

    def _run_jobs(
        self,
        executor: Executor,
        function: JobFunction,
        arguments: Mapping[str, Mapping[str, Any]],
        *,
        stage: str,
    ) -> dict[str, dict[str, Any]]:
        """Run one job per name, as many at once as there are slots; raise if one fails."""
        waiting, running = list(arguments), 0
        answers: dict[str, dict[str, Any]] = {}
        while waiting or running:
            while waiting and running < executor.slots:
                name = waiting.pop(0)
                executor.submit(name, function, **arguments[name])
                running += 1
            event = executor.next_event()
            if isinstance(event, Progress):
                executor.answer(event.job, go_on=True)
            elif isinstance(event, Failed):
                raise AutopruneError(f"The {stage} of {event.job} failed: {event.cause}")
            else:
                assert isinstance(event, Done)
                answers[event.job] = event.value
                running -= 1
                self.reporter.update(Status(stage=stage, done=len(answers), total=len(arguments)))
        return answers

    # --- MLflow -----------------------------------------------------------------------------

    def _tracked_params(self) -> dict[str, Any]:
        """Return what is the same whenever this search is gone on with."""
        return {
            "study": self.study.name,
            "final_epochs": self.study.final_epochs,
            "dense_params": self.cost.params(self.grouping.channels),
            "groups": len(self.grouping.groups),
        }

    def _setting_tags(self) -> dict[str, str]:
        """Return the settings, which may differ from one sitting to the next."""
        hidden = ("storage", "tracking_uri")  # they may hold passwords
        names = [n for n in Settings.__dataclass_fields__ if n not in hidden]
        return {f"setting.{n}": str(getattr(self.settings, n)) for n in names}

    def _tracked_tags(self) -> dict[str, str]:
        commit = _git_commit()
        tags = {f"version.{name}": version for name, version in versions().items()}
        return {
            **tags,
            "seed": str(self.study.seed),
            "study": self.study.name,
            **({"git_commit": commit} if commit else {}),
        }

    def _track_front(self, front: Mapping[str, Candidate], driver: Driver) -> None:
        value = read_json(self.store.front_file)
        picture, page = self.store.root / "front.png", self.store.root / "front.html"
        front_picture(value, picture)
        trials = [(c.score.params, c.score.valid, c.name) for c in driver.candidates.values()]
        front_figure(value, trials).write_html(page, include_plotlyjs=True)
        entries = {entry["name"]: entry for entry in value["front"]}
        result = open_result(self.store.root, build=self.study.build)
        self.tracker.front(
            [
                FrontModel(
                    key=candidate.name,
                    folder=self.store.front / name,
                    metrics={
                        "final_valid": entries[name]["valid"],
                        **(
                            {} if entries[name]["test"] is None else {"test": entries[name]["test"]}
                        ),
                    },
                    module=lambda n=name: result.load(n),  # type: ignore[misc]
                    example=self.study.example,
                )
                for name, candidate in front.items()
            ],
            [self.store.front_file, picture, page],
        )


def _run_job(
    executor: Executor,
    function: JobFunction,
    tell: Callable[[Mapping[str, Any]], None] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Run one job to its end and return its result; raise what it failed with."""
    job = function.__name__
    executor.submit(job, function, **arguments)
    while True:
        event = executor.next_event()
        if isinstance(event, Progress):
            if tell is not None:
                tell(event.value)
            executor.answer(job, go_on=True)
        elif isinstance(event, Failed):
            if event.fixable:
                raise AutopruneError(event.cause)
            raise RuntimeError(f"{event.cause}\n{event.detail}")
        else:
            value: dict[str, Any] = event.value
            return value


def _name_metrics(study: optuna.Study, names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(names)


def _journal(path: Path) -> optuna.storages.BaseStorage:
    """Open the journal file; mend it first if a crash tore its last line or left its lock.

    The folder's lock is ours, so nobody else is writing.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    return JournalStorage(JournalFileBackend(str(path)))


def _entry(name: str, trial: int | None, score: Score, test: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "trial": trial,
        "params": score.params,
        "macs": score.macs,
        "size_bytes": score.size_bytes,
        "valid": score.valid,
        "test": test,
    }


def _counts(study: optuna.Study) -> dict[str, int]:
    states = [t.state.name for t in study.get_trials(deepcopy=False)]
    names = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
    return {word: states.count(state) for state, word in names.items()}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    packages = ("torch", "optuna", "mlflow", "scikit-learn", "torch-pruning")
    return {
        "autoprune": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _git_commit() -> str | None:
    """Return the commit of the working directory's repository, if it is one."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
