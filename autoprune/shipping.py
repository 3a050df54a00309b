"""What goes to a machine that does not share the driver's disk: each job's files, and the code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoprune import jobs
from autoprune.errors import AutopruneError
from autoprune.pruning.plan import Plan
from autoprune.results.export import ONNX
from autoprune.results.store import Store
from autoprune.running.executor import JobFunction
from autoprune.running.freight import Freight, Luggage, Piece, packed
from autoprune.searching.candidate import DENSE
from autoprune.sparsified import sparse_name
from autoprune.study import PruningStudy

LARGEST_FILE = 1 << 20
"""Bytes; larger files beside a study's code are data, which every machine must have."""
LARGEST_LUGGAGE = 64 << 20

# --- the files of jobs --------------------------------------------------------------------------


class Shipping:
    """Says which files of a store go with a job, and come back.

    Scores and sparsified weights are caches: they come back so that others are spared the work.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._freight: dict[JobFunction, Callable[..., Freight]] = {
            jobs.prepare_dense: self._prepare_dense,
            jobs.sensitivity: self._sensitivity,
            jobs.evaluate: self._evaluate,
            jobs.test_score: self._test_score,
            jobs.export: self._export,
            jobs.latencies: self._latencies,
            jobs.reload_check: self._reload_check,
        }

    def __call__(self, function: JobFunction, arguments: Mapping[str, Any]) -> Freight:
        return self._freight[function](**arguments)

    def _prepare_dense(self, **_: Any) -> Freight:
        weights, scores = self._names(self._store.weights(DENSE), self._store.scores(DENSE))
        under_way = self._names(self._store.checkpoint(DENSE))
        return Freight(
            needs=(*self._names(self._store.groups_file), *under_way),
            leaves=(weights, scores),
            keeps=under_way,
        )

    def _sensitivity(self, **_: Any) -> Freight:
        scores = self._names(self._store.scores(DENSE))
        return Freight(needs=(*self._models(DENSE), *scores), leaves=scores)

    def _evaluate(
        self,
        *,
        name: str,
        plan: Mapping[str, Any],
        parent: str,
        checkpoint: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Freight:
        caches = self._names(self._store.scores(parent))
        wanted = Plan.from_json(dict(plan))
        if wanted.sparsify is not None:
            sparse = sparse_name(wanted, parent)
            caches += self._names(self._store.weights(sparse), self._store.scores(sparse))
        under_way: tuple[str, ...] = ()
        if checkpoint is not None:
            under_way = self._names(self._store.checkpoint(checkpoint["name"]))
        return Freight(
            needs=(*self._models(DENSE, parent), *caches, *under_way),
            leaves=(*self._names(self._store.weights(name)), *caches),
            keeps=under_way,
        )

    def _test_score(self, *, name: str) -> Freight:
        return Freight(needs=self._models(name))

    def _export(self, *, name: str, weights: str, folder: str, **_: Any) -> Freight:
        return Freight(needs=self._models(name, weights), leaves=_exported(folder))

    def _latencies(self, *, models: Mapping[str, Mapping[str, str]], **_: Any) -> Freight:
        dense = (self._store.relative(self._store.dense / ONNX),)
        folders = [path for order in models.values() for path in _exported(order["folder"])]
        weights = self._models(DENSE, *(order["weights"] for order in models.values()))
        return Freight(needs=(*weights, *folders, *dense), leaves=dense)

    def _reload_check(self, *, folder: str) -> Freight:
        return Freight(needs=_exported(folder))

    def _models(self, *names: str) -> tuple[str, ...]:
        """Return what it takes to have the models of candidates."""
        files = [self._store.groups_file]
        for name in dict.fromkeys(names):
            files += [self._store.weights(name), self._store.folder(name) / "candidate.json"]
        return self._names(*files)

    def _names(self, *files: Path) -> tuple[str, ...]:
        return tuple(self._store.relative(file) for file in files)


def _exported(folder: str) -> tuple[str, ...]:
    """Return an exported model's files: those in its folder, and the reference beside it."""
    return (folder, f"{folder}.reference.safetensors", f"{folder}.reference.json")


# --- the code -----------------------------------------------------------------------------------


def checkpoint_of(study: PruningStudy) -> Path | None:
    """Return where a study's dense weights lie on this machine."""
    return None if study.checkpoint is None else Path(study.checkpoint).resolve()


def luggage_of(origin: PruningStudy | Path, study: PruningStudy) -> Luggage:
    """Return the files that a study needs: its checkpoint, its file and the code beside that.

    Code is the Python files of the study's folder, and packages in it with all that they hold.

    Raises
    ------
    AutopruneError
        If that is more than goes to each worker.
    """
    folders: dict[str, dict[str, Piece]] = {}
    if isinstance(origin, Path):
        here = origin.parent
        folders[str(here)] = {
            file.relative_to(here).as_posix(): packed(file) for file in _code_in(here)
        }
        size = sum(len(piece.content) for piece in folders[str(here)].values())
        if size > LARGEST_LUGGAGE:
            raise AutopruneError(
                f"A study file's folder must hold at most {LARGEST_LUGGAGE >> 20} MB of code to go "
                f"to a cluster, but {here} holds {size >> 20} MB. Give the study its own folder."
            )
    weights = checkpoint_of(study)
    if weights is not None:
        folders.setdefault(str(weights.parent), {})[weights.name] = packed(weights)
    return Luggage(folders=folders)


def _code_in(folder: Path) -> Iterator[Path]:
    yield from sorted(file for file in folder.glob("*.py") if file.is_file())
    for package in sorted(folder.glob("*/__init__.py")):
        yield from _package(package.parent)


def _package(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _package(path)
        elif path.is_file() and path.stat().st_size <= LARGEST_FILE:
            yield path
