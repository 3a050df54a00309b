"""Timing a front: the dense model and its exports in turns, in one process, on record."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import AutopruneError, unknown
from autoprune.jobs import Workbench
from autoprune.pruning.files import read_json
from autoprune.results.added import record, with_bench, write_front
from autoprune.results.drawing import redraw
from autoprune.results.export import ONNX, export_onnx
from autoprune.results.load import load
from autoprune.results.result import SearchResult, open_result
from autoprune.searched import Searched, reopen
from autoprune.searching.candidate import DENSE
from autoprune.study import PruningStudy, path_restored
from autoprune.training.latency import ENGINES, Latency, measure_together

RUNTIMES = ("eager", "onnx")
"""What models are run by if nobody says."""


@dataclass(frozen=True, kw_only=True)
class Benched:
    """What was measured."""

    runs: tuple[dict[str, Any], ...]
    """As ``front.json`` has them, one for each runtime."""
    notes: tuple[str, ...]
    """What is to be said of it, one line each."""


@path_restored()
def bench(
    out: str | Path,
    *,
    study: PruningStudy | str | Path | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    batch_size: int = 1,
    threads: int = 1,
    tell: Callable[[str], None] = lambda runtime: None,
) -> Benched:
    """Time the dense model and the models on a search's front, and keep the figures.

    Models take turns in one process, block by block, so that what else the machine does hits all
    of them alike; the median and the interquartile range of all blocks are kept, after a warm-up
    (see `training.latency`). ``front.json``, MLflow and the pictures get them.

    Parameters
    ----------
    out
        A finished search's output folder.
    study
        The study that was searched; by default where the search had it from.
    runtimes
        ``eager``, ``compile`` and ``onnx`` (ONNX Runtime on the CPU).
    batch_size
        Samples in the batch.
    threads
        Compute threads.
    tell
        Is told which runtime is measured now.

    Raises
    ------
    AutopruneError
        If there is no finished search, its study is not known, or a model does not run.

    Examples
    --------
    >>> autoprune.bench("runs/mine", batch_size=32).runs[0]["models"]  # doctest: +SKIP
    """
    for name in runtimes:
        if name not in ENGINES:
            raise unknown("runtime", name, ENGINES)
    if not runtimes:
        raise AutopruneError(f"`runtime` must name at least one of {', '.join(ENGINES)}.")
    for what, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise AutopruneError(f"`{what}` must be at least 1, but is {value}.")
    result = open_result(out)
    searched = reopen(out, study)
    runs = []
    for name in dict.fromkeys(runtimes):
        tell(name)
        models = _onnx_models(searched, result) if name == "onnx" else _modules(searched, result)
        example = searched.study.example
        found = measure_together(
            models, example, engine=name, batch_size=batch_size, threads=threads
        )
        runs.append(_on_record(name, found, threads=threads))
    store = searched.store
    with store.locked():
        write_front(store, with_bench(read_json(store.front_file), runs))
    notes = record(store, _metrics(runs), redraw(store))
    return Benched(runs=tuple(runs), notes=(*_restless(runs), *notes))


def _modules(searched: Searched, result: SearchResult) -> dict[str, nn.Module | Path]:
    workbench = Workbench(searched.study, searched.store)
    models: dict[str, nn.Module | Path] = {DENSE: workbench.model(DENSE)}
    for model in result.front:
        folder = result.out / model.path
        models[model.name] = load(folder, model=workbench.untrained).to(workbench.device)
    return models


def _onnx_models(searched: Searched, result: SearchResult) -> dict[str, nn.Module | Path]:
    files = {m.name: result.out / m.path / ONNX for m in result.front}
    lacking = [name for name, file in files.items() if not file.exists()]
    if lacking:
        raise AutopruneError(
            f"Front models must have an ONNX file to be timed by runtime 'onnx', but "
            f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none: see `problems` "
            f"in {result.out / 'front.json'}. Use --runtime eager."
        )
    dense = searched.store.dense / ONNX
    if not dense.exists():
        model = Workbench(searched.study, searched.store).model(DENSE)
        export_onnx(model, dense, example=searched.study.example)
    return {DENSE: dense, **files}


def _on_record(runtime: str, found: dict[str, Latency], *, threads: int) -> dict[str, Any]:
    first = next(iter(found.values()))
    return {
        "runtime": runtime,
        "batch_size": first.batch_size,
        "threads": threads,
        "device": first.device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "time": time.time(),
        "models": {
            name: {"seconds": x.seconds, "spread": x.spread, "runs": x.runs}
            for name, x in found.items()
        },
    }


def _restless(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Say by which runtimes the quartiles were further apart than the median is from 0."""
    names = [
        run["runtime"]
        for run in runs
        if any(timed["spread"] > timed["seconds"] for timed in run["models"].values())
    ]
    if not names:
        return []
    return [
        f"The times by {' and '.join(names)} scatter more than they are long: the machine was busy "
        f"with something else. Run the same command again when it is not."
    ]


def cpu_name() -> str:
    """Return what this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _metrics(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what MLflow is told, by model: the runtime, batch and threads are in the names."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        prefix = f"bench.{run['runtime']}.b{run['batch_size']}.t{run['threads']}"
        for name, timed in run["models"].items():
            told = found.setdefault(name, {})
            told[f"{prefix}.ms"] = 1e3 * timed["seconds"]
            told[f"{prefix}.spread_ms"] = 1e3 * timed["spread"]
    return found
