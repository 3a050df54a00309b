"""Uniformly pruned baselines: what the same recipe gives when every group loses the same share."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoprune import jobs
from autoprune.errors import AutopruneError
from autoprune.finale import UnexpectedError, run_all, run_job
from autoprune.identity import digest_of
from autoprune.progress import Reporter, SilentReporter, Status
from autoprune.pruning.cost import CostModel
from autoprune.pruning.files import read_json
from autoprune.pruning.plan import Plan
from autoprune.results.added import BASELINES, OWN, record, write_front
from autoprune.results.drawing import redraw
from autoprune.results.result import Model, SearchResult, open_result
from autoprune.results.store import Store
from autoprune.run import space_of
from autoprune.running.executor import Executor
from autoprune.running.local import LocalExecutor
from autoprune.searched import Searched, reopen
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.candidate import DENSE, FINAL, Candidate, Score
from autoprune.settings import Settings
from autoprune.study import PruningStudy, path_restored

SIZES = 5
"""How many baselines there are if nobody says."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Uniformly pruned models of a search, by ascending size."""

    models: tuple[dict[str, Any], ...]
    """As ``front.json`` has them."""
    trained: int
    """How many were trained now; the others were there."""
    notes: tuple[str, ...]
    """What is to be said of it, one line each."""


@path_restored()
def baselines(
    out: str | Path,
    *,
    study: PruningStudy | str | Path | None = None,
    sizes: int = SIZES,
    workers: int | str = "auto",
    reporter: Reporter | None = None,
) -> Baselines:
    """Train uniformly pruned models of the front's sizes, to see what the search was worth.

    Each is cut from the dense model at once, every group to the same share of its channels, and
    fine-tuned by the recipe of the front model that is nearest in size: its criterion and
    fine-tuning, for as many epochs as that one's whole lineage had. Sizes are in equal ratios from
    the front's smallest to its largest. ``front.json`` keeps them, and the front's pictures, the
    report and MLflow show them.

    Parameters
    ----------
    out
        A finished search's output folder.
    study
        The study that was searched; by default where the search had it from.
    sizes
        How many.
    workers
        Worker processes; ``auto`` is one per core or GPU.
    reporter
        Is told how far it has come.

    Raises
    ------
    AutopruneError
        If there is no finished search, its study is not known, or a baseline cannot be trained.

    Examples
    --------
    >>> [m["valid"] for m in autoprune.baselines("runs/mine").models]  # doctest: +SKIP
    [0.91, 0.95, 0.97, 0.98, 0.985]
    """
    if sizes < 1:
        raise AutopruneError(f"`sizes` must be at least 1, but is {sizes}.")
    count = Settings(workers=workers).worker_count()  # type: ignore[arg-type]
    result = open_result(out)
    if not result.front:
        raise AutopruneError(f"The front of {result.out} is empty: there are no sizes to compare.")
    searched = reopen(out, study)
    reporter = reporter or SilentReporter()
    plans = _plans(searched, result, sizes)
    there = {m.get("key"): m for m in read_json(searched.store.front_file).get(BASELINES, [])}
    wanted = {name: plan for name, plan in plans.items() if plan.key not in there}
    trained = _trained(searched, wanted, workers=max(count, 1), reporter=reporter)
    models = [trained.get(name) or there[plan.key] for name, plan in plans.items()]
    models = [{**m, "name": name} for name, m in zip(plans, models, strict=True)]
    store = searched.store
    with store.locked():
        write_front(store, read_json(store.front_file) | {BASELINES: models})
    notes = record(store, {OWN: _metrics(models)}, redraw(store))
    return Baselines(models=tuple(models), trained=len(trained), notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A baseline to train."""

    plan: Plan
    size: int
    """Parameters that it may have at most."""
    params: int
    macs: int
    like: str
    """The front model whose recipe it has."""
    seed: int

    @property
    def key(self) -> str:
        """Tell baselines apart that would come to different weights."""
        return digest_of([self.plan.to_json(), self.size, self.seed])


def _plans(searched: Searched, result: SearchResult, sizes: int) -> dict[str, _Wanted]:
    """Return the baselines by name, by ascending size; those of the same widths once."""
    study, store = searched.study, searched.store
    grouping = store.load_grouping()
    cost = CostModel(grouping)
    space = space_of(study, jobs.dense_model(study), grouping)
    allocator = Allocator(cost, allowed=space.allowed)
    found: dict[str, _Wanted] = {}
    known: list[Mapping[str, int]] = []
    for size in _sizes(result, sizes):
        widths = allocator.widths(size, Shape(eta=1.0))
        if widths in known:
            continue
        known.append(widths)
        params = cost.params(widths)
        like = min(result.front, key=lambda m: abs(math.log(m.params / params)))
        recipe = _recipe(store, like)
        plan = Plan(
            widths=widths,
            criterion=recipe.plan.criterion,
            finetune=replace(recipe.plan.finetune, epochs=recipe.epochs),
            reconstruct=recipe.plan.reconstruct,
            granularity=recipe.plan.granularity,
        )
        found[f"uniform-{len(found) + 1}"] = _Wanted(
            plan=plan,
            size=size,
            params=params,
            macs=cost.macs(widths),
            like=like.name,
            seed=study.seed,
        )
    return found


def _sizes(result: SearchResult, count: int) -> list[int]:
    least, most = (end(m.params for m in result.front) for end in (min, max))
    if count == 1:
        return [round(math.sqrt(least * most))]
    return [round(least * (most / least) ** (i / (count - 1))) for i in range(count)]


def _recipe(store: Store, model: Model) -> Candidate:
    """Return the candidate that a front model was exported from."""
    final = model.name + FINAL
    if store.has_candidate(final):
        candidate = store.load_candidate(final)
        if candidate.score.valid == model.valid:
            return candidate
    return store.load_candidate(model.name)


def _trained(
    searched: Searched, wanted: Mapping[str, _Wanted], *, workers: int, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """Train baselines, in a folder that goes again; return them as ``front.json`` has them."""
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        fresh = Store(folder)
        fresh.dense.mkdir()
        for file in (searched.store.weights(DENSE), searched.store.groups_file):
            shutil.copy(file, fresh.dense)
        executor: Executor = LocalExecutor(
            searched.opening(fresh, in_process=False),
            workers=min(workers, len(wanted)),
            log_folder=fresh.logs,
        )
        try:
            return _run(executor, fresh, wanted, reporter)
        except UnexpectedError as error:
            raise AutopruneError(f"A baseline must be trained, but that raised {error}") from error
        finally:
            executor.close()


def _run(
    executor: Executor, store: Store, wanted: Mapping[str, _Wanted], reporter: Reporter
) -> dict[str, dict[str, Any]]:
    orders = {
        name: {"name": name, "plan": w.plan.to_json(), "parent": DENSE, "seed": w.seed}
        for name, w in wanted.items()
    }
    reporter.update(Status(stage="baselines", total=len(orders)))
    answers = run_all(
        executor,
        jobs.evaluate,
        orders,
        what="The training",
        tell=lambda done: reporter.update(Status(stage="baselines", done=done, total=len(orders))),
    )
    found = {}
    for name, answer in answers.items():
        w = wanted[name]
        store.save_candidate(_candidate(name, w, answer))
        tested = run_job(executor, jobs.test_score, name=name)["test"]
        found[name] = {
            "key": w.key,
            "size": w.size,
            "params": w.params,
            "macs": w.macs,
            "size_bytes": answer["size_bytes"],
            "valid": answer["valid"],
            "test": tested,
            "epochs": w.plan.finetune.epochs,
            "like": w.like,
            "criterion": w.plan.criterion,
            "finetune": asdict(w.plan.finetune),
            "widths": dict(w.plan.widths),
        }
    return found


def _candidate(name: str, wanted: _Wanted, answer: Mapping[str, Any]) -> Candidate:
    score = {field: answer[field] for field in ("valid", "params", "macs", "size_bytes")}
    return Candidate(
        name=name,
        trial=-1,
        plan=Plan.from_json(answer["plan"]),
        score=Score(**score),
        parent=DENSE,
        epochs=wanted.plan.finetune.epochs,
        seed=wanted.seed,
        sha256=answer["sha256"],
    )


def _metrics(models: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        f"{model['name']}.{what}": float(model[what])
        for model in models
        for what in ("params", "valid", "test")
        if model[what] is not None
    }
