"""The end of a search: export what is on the front, prove it, write ``front.json``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from autoprune import jobs
from autoprune.asking import RETRIES
from autoprune.errors import AutopruneError
from autoprune.progress import Reporter, Status
from autoprune.pruning.files import write_json, write_signed
from autoprune.pruning.groups import Grouping
from autoprune.results.added import carried
from autoprune.results.choosing import worth_a_look
from autoprune.results.drawing import draw_front
from autoprune.results.export import reference_file, reference_layout, verify
from autoprune.results.exported import METRICS
from autoprune.results.figures import (
    ProxyPoint,
    importances_picture,
    proxy_figure,
    proxy_picture,
)
from autoprune.results.importances import importances
from autoprune.results.notes import front_note, model_line
from autoprune.results.provenance import versions
from autoprune.results.records import FrontModel, Overview
from autoprune.results.result import FORMAT, Model, SearchResult, open_result
from autoprune.results.store import Store
from autoprune.running.executor import Done, Executor, Failed, JobFunction, Progress
from autoprune.searching.candidate import DENSE, Candidate, Score
from autoprune.searching.pareto import front_of
from autoprune.searching.proxies import epoch0
from autoprune.study import PruningStudy


@dataclass(frozen=True, kw_only=True)
class Finale:
    """Exports the front of a finished search.

    Each model is written in every format, reloaded in a process that cannot import autoprune and
    in its own class, and compared with the model in memory, before the new front takes the old
    one's place.
    """

    study: PruningStudy
    store: Store
    grouping: Grouping
    executor: Executor
    reporter: Reporter
    costs: Sequence[str]
    """What the score is traded against, by the objectives' names."""
    latency: Mapping[str, Any]
    """How latency is measured, as `jobs.latencies` takes it."""
    extras: bool = True
    """Whether programs are written and proved, models timed, and pictures drawn."""

    def export(
        self,
        *,
        dense: Score,
        chosen: Mapping[str, Candidate],
        trials: Mapping[str, int],
        epochs: int,
        proxies: Mapping[str, Mapping[str, Any]],
    ) -> SearchResult:
        """Export the front of `chosen` and write ``front.json``.

        Parameters
        ----------
        chosen
            By the name of the candidate that the search found, itself or its final stage.
        trials
            How many trials ended in which way.
        epochs
            How many epochs they trained.
        proxies
            How proxies correlate with the final score, by name; see `searching.proxies`.
        """
        front = self.front(chosen)
        fresh = self.store.root / "front.new"
        shutil.rmtree(fresh, ignore_errors=True)
        folders = {name: fresh / name for name in front}
        orders = {
            name: {"name": name, "weights": c.name, "folder": self.store.relative(folders[name])}
            for name, c in front.items()
        }
        answers = run_all(
            self.executor,
            jobs.export,
            {name: order | {"programs": self.extras} for name, order in orders.items()},
            what="The export",
            tell=lambda done: self.reporter.update(
                Status(stage="export", done=done, total=len(orders))
            ),
        )
        faults = self._faults(folders)
        tested = run_job(self.executor, jobs.test_score, name=DENSE)["test"]
        self._note_undefined({DENSE: tested, **{n: a["test"] for n, a in answers.items()}})
        measured = self._latencies(orders)
        entries = [
            self._settle(
                _entry(name, int(name.removeprefix("t")), candidate.score, answers[name]["test"])
                | measured[name],
                folders[name],
                answers[name],
                faults[name],
            )
            for name, candidate in front.items()
        ]
        sound, rejected = _sorted_out(entries, folders)
        shutil.rmtree(self.store.front, ignore_errors=True)
        fresh.rename(self.store.front)
        found = {
            "dense": _entry(DENSE, None, dense, tested) | measured[DENSE] | {"path": "dense"},
            "front": sound,
            "rejected": rejected,
            "trials": dict(trials),
            "epochs": epochs,
            "proxies": {name: dict(correlation) for name, correlation in proxies.items()},
            "blocked": [asdict(b) for b in self.grouping.blocked],
            "versions": versions(),
        }
        kept = carried(self.store.front_file, [entry["name"] for entry in sound])
        write_signed(self.store.front_file, self._about() | found | kept)
        return open_result(self.store.root, build=self.study.build)

    def front(self, chosen: Mapping[str, Candidate]) -> dict[str, Candidate]:
        """Return the front of `chosen`, by ascending parameters, under the search's names."""
        names = {candidate.name: name for name, candidate in chosen.items()}
        front = front_of(
            chosen.values(),
            higher_is_better=self.study.task.higher_is_better,
            costs=self.costs,
        )
        return {names[c.name]: c for c in front}

    def pictures(
        self, front_json: Mapping[str, Any], trials: list[Candidate], study: optuna.Study
    ) -> list[Path]:
        """Draw the front, as a picture and as an interactive page, and more; return the files."""
        if not self.extras:
            return []
        return [
            *draw_front(self.store, front_json, trials),
            *self._proxy_pictures(front_json, trials),
            *self._importances(study),
        ]

    def _importances(self, study: optuna.Study) -> list[Path]:
        found = importances(study, higher_is_better=self.study.task.higher_is_better)
        if found is None:
            return []
        picture = self.store.root / "importances.png"
        importances_picture(found, self.study.name, picture)
        return [picture]

    def _proxy_pictures(self, front_json: Mapping[str, Any], trials: list[Candidate]) -> list[Path]:
        """Draw the score before the training against the one after it, trial by trial."""
        picture, page = self.store.root / "proxy.png", self.store.root / "proxy.html"
        before = epoch0(trials)
        points = [
            ProxyPoint(c.name, c.score.params, before[c.name], c.score.valid)
            for c in trials
            if c.name in before
        ]
        proxy_picture(front_json, points, picture)
        proxy_figure(front_json, points).write_html(page, include_plotlyjs=True)
        return [picture, page]

    def tracked(self, result: SearchResult, front: Mapping[str, Candidate]) -> list[FrontModel]:
        """Return the exported models as they are recorded."""
        models = {model.name: model for model in result.front}
        return [
            FrontModel(
                key=candidate.name,
                folder=self.store.front / name,
                metrics=_metrics(models[name]),
                module=lambda n=name: result.load(n),  # type: ignore[misc]
                example=self.study.example,
                about=model_line(models[name], result.dense, result.metric),
            )
            for name, candidate in front.items()
            if name in models
        ]

    def overview(
        self, result: SearchResult, front: Mapping[str, Candidate], *, register: str | None
    ) -> Overview:
        """Return what the search's own run says of the front."""
        trials = {name: candidate.name for name, candidate in front.items()}
        chosen = worth_a_look(
            result.front, dense=result.dense, higher_is_better=result.higher_is_better
        )
        dense = {"test": result.dense.test, "final_latency_ms": result.dense.latency_ms}
        return Overview(
            note=front_note(result, chosen, trials=trials, register=register),
            aliases={what: trials[m.name] for what, m in chosen.by_name.items() if m is not None},
            dense={name: value for name, value in dense.items() if value is not None},
            register=register,
        )

    def _about(self) -> dict[str, Any]:
        """Return what ``front.json`` says first: what was searched, and for what."""
        return {
            "format": FORMAT,
            "study": self.study.name,
            "metric": self.study.task.metric,
            "higher_is_better": self.study.task.higher_is_better,
            "seed": self.study.seed,
            "objectives": [self.study.task.metric, *self.costs],
        }

    def _note_undefined(self, tested: Mapping[str, float | None]) -> None:
        """Say which models have no test score although there are data to test them on."""
        without = [name for name, score in tested.items() if score is None]
        if without and getattr(self.study.task, "has_test", True):
            self.reporter.note(
                f"{self.study.task.metric} on the test split is no finite number for "
                f"{', '.join(without)}: no test score is reported. Has the split every class?"
            )

    def _latencies(self, orders: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Measure the dense model and the exported ones; return what their entries say of it."""
        if not self.extras:
            return {name: {} for name in (DENSE, *orders)}
        answer = run_job(self.executor, jobs.latencies, models=orders, **self.latency)
        for problem in answer["problems"]:
            self.reporter.note(problem)
        return {
            name: {
                "latency_ms": next(
                    (1e3 * x["seconds"] for x in found if x["engine"] == self.latency["engine"]),
                    None,
                ),
                "latencies": found,
            }
            for name, found in answer["latencies"].items()
        }

    def _settle(
        self,
        facts: Mapping[str, Any],
        folder: Path,
        answer: Mapping[str, Any],
        faults: list[str],
    ) -> dict[str, Any]:
        """Write a model's metrics beside it, drop its reference, and return its entry."""
        name = facts["name"]
        entry = {
            **facts,
            "formats": answer["formats"],
            "problems": [*answer["problems"], *faults],
            "verified": not faults,
        }
        for problem in entry["problems"]:
            self.reporter.note(f"{name}: {problem}")
        write_json(folder / METRICS, entry)
        reference_file(folder).unlink(missing_ok=True)
        reference_layout(folder).unlink(missing_ok=True)
        return {**entry, "path": f"front/{name}"}

    def _faults(self, folders: Mapping[str, Path]) -> dict[str, list[str]]:
        faults: dict[str, list[str]] = {name: [] for name in folders}
        if self.extras:
            processes = max(1, min(self.executor.slots, len(os.sched_getaffinity(0))))
            faults |= verify(list(folders.values()), processes=processes)
        reloaded = run_all(
            self.executor,
            jobs.reload_check,
            {name: {"folder": self.store.relative(folder)} for name, folder in folders.items()},
            what="Reloading",
        )
        return {name: [*faults[name], *reloaded[name]["faults"]] for name in folders}


def _metrics(model: Model) -> dict[str, float]:
    """Return what MLflow is told of an exported model."""
    known = {"final_valid": model.valid, "test": model.test, "final_latency_ms": model.latency_ms}
    return {name: value for name, value in known.items() if value is not None}


def _entry(name: str, trial: int | None, score: Score, test: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "trial": trial,
        "params": score.params,
        "macs": score.macs,
        "size_bytes": score.size_bytes,
        "memory_bytes": score.memory,
        "valid": score.valid,
        "test": test,
    }


def _sorted_out(
    entries: Sequence[dict[str, Any]], folders: Mapping[str, Path]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries of models that were verified, and the others, whose folders go.

    Raises
    ------
    AutopruneError
        If none was verified.
    """
    sound = [entry for entry in entries if entry["verified"]]
    rejected = [entry for entry in entries if not entry["verified"]]
    for entry in rejected:
        shutil.rmtree(folders[entry["name"]])
    if not sound:
        raise AutopruneError(
            f"No model on the front answers as it did in memory after exporting: "
            f"{rejected[0]['name']}: {rejected[0]['problems'][0]}"
        )
    return sound, rejected


class UnexpectedError(RuntimeError):
    """A job failed with something other than one of our errors."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause if cause.endswith(".") else f"{cause}.")
        self.detail = detail


def run_all(
    executor: Executor,
    function: JobFunction,
    orders: Mapping[str, Mapping[str, Any]],
    *,
    what: str,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Run one job per name, as many at once as there are slots; raise if one fails.

    `what` names the job, and `tell` is told how many are done.
    """
    waiting, running = list(orders), 0
    deaths = dict.fromkeys(orders, 0)
    answers: dict[str, dict[str, Any]] = {}
    while waiting or running:
        while waiting and running < executor.slots:
            name = waiting.pop(0)
            executor.submit(name, function, **orders[name])
            running += 1
        event = executor.next_event()
        if isinstance(event, Progress):
            executor.answer(event.job, go_on=True)
        elif isinstance(event, Failed):
            deaths[event.job] += event.died
            if not event.died or deaths[event.job] > RETRIES:
                raise AutopruneError(f"{what} of {event.job} failed: {event.cause}")
            waiting.append(event.job)
            running -= 1
        else:
            assert isinstance(event, Done)
            answers[event.job] = event.value
            running -= 1
            tell(len(answers))
    return answers


def run_job(
    executor: Executor,
    function: JobFunction,
    tell: Callable[[Mapping[str, Any]], None] | None = None,
    *,
    tries: int = RETRIES + 1,
    **arguments: Any,
) -> dict[str, Any]:
    """Run one job to its end and return its result; raise what it failed with.

    One whose worker dies is run again, up to so many `tries` in all.
    """
    job = function.__name__
    executor.submit(job, function, **arguments)
    deaths = 0
    while True:
        event = executor.next_event()
        if isinstance(event, Progress):
            if tell is not None:
                tell(event.value)
            executor.answer(job, go_on=True)
        elif isinstance(event, Failed):
            deaths += event.died
            if event.died and deaths < tries:
                executor.submit(job, function, **arguments)
                continue
            if event.fixable:
                raise AutopruneError(event.cause)
            raise UnexpectedError(event.cause, event.detail)
        else:
            value: dict[str, Any] = event.value
            return value
