"""How a worker comes by its workbench: the study, from its file or from memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoprune import jobs
from autoprune.results.store import Store
from autoprune.running.executor import Opening, reference
from autoprune.study import PruningStudy, source_of


def opening_for(
    origin: PruningStudy | Path,
    store: Store,
    *,
    in_process: bool,
    threads: int = 1,
    checkpoint: Path | None = None,
    seed: int | None,
    criteria: Sequence[str] | None,
    sparsify: Sequence[str] | None,
) -> Opening:
    """Return how workers open their workbench on a study object or a study file.

    A study object carries its overrides already; a file is loaded anew and overridden there. A
    worker has so many `threads`, and takes the dense weights from `checkpoint` if that is given.
    """
    if in_process and isinstance(origin, PruningStudy):
        return _InProcess(origin, store)
    source = asdict(source_of(origin))
    if not isinstance(origin, PruningStudy):
        source |= {
            "seed": seed,
            "criteria": criteria and list(criteria),
            "sparsify": sparsify and list(sparsify),
        }
    source["checkpoint"] = None if checkpoint is None else str(checkpoint)
    spec = {
        "source": source,
        "out": str(store.root),
        "threads": None if in_process else threads,
    }
    return Opening(function=reference(jobs.open_workbench), spec=spec)


class _InProcess(Opening):
    """Opens the workbench on the very study object that the caller passed."""

    def __init__(self, study: PruningStudy, store: Store) -> None:
        super().__init__(function=reference(jobs.open_workbench), spec=None)
        object.__setattr__(self, "_made", (study, store))

    def __call__(self) -> Any:
        study, store = self._made  # type: ignore[attr-defined]
        return jobs.Workbench(study, store)
