"""Replaying a trial: its weights once more, from what the search recorded of its lineage."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from autoprune import jobs
from autoprune.errors import AutopruneError, unknown
from autoprune.finale import run_job
from autoprune.pruning.plan import Plan
from autoprune.results.store import Store
from autoprune.running.executor import Executor
from autoprune.running.inline import InlineExecutor
from autoprune.running.local import LocalExecutor
from autoprune.searched import reopen
from autoprune.searching.candidate import DENSE, Candidate
from autoprune.study import PruningStudy, path_restored
from autoprune.training.device import OwnRandomState


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """A finished trial's model, trained again."""

    model: nn.Module
    """On the CPU, in evaluation mode."""
    valid: float
    """Its score on the validation split now."""
    recorded: float
    """What it was in the search."""


@path_restored()
def replay(
    out: str | Path,
    name: str,
    *,
    study: PruningStudy | str | Path,
    in_process: bool = False,
) -> Replayed:
    """Train a finished trial's model again: every ancestor in turn, from the dense weights on.

    A search keeps the weights of candidates that may still become parents or exports, and drops
    the others'. Of each it keeps the plan, the seed and the parent, which are enough to get the
    weights back. On the CPU of the same machine, with the same versions, they are the same bit for
    bit; elsewhere `valid` and `recorded` say how near it came.

    Parameters
    ----------
    out
        The search's output folder, which is only read.
    name
        A finished trial, e.g. ``t017``, or its final stage, ``t017-final``.
    study
        The study that was searched: the object, its file, or the name of a built-in one.
    in_process
        Train in this process, as a search with ``workers=0`` does, and not in a worker of one
        thread.

    Raises
    ------
    AutopruneError
        If there is no such trial, the study is another one, or a job fails.

    Examples
    --------
    >>> again = autoprune.replay("runs/mine", "t017", study="my_study.py")  # doctest: +SKIP
    >>> again.valid == again.recorded  # doctest: +SKIP
    True
    """
    store = Store(out)
    chain = _chain(store, name)
    searched = reopen(out, study)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Store(folder)
        fresh.dense.mkdir()
        for file in (store.weights(DENSE), store.groups_file):
            shutil.copy(file, fresh.dense)
        opening = searched.opening(fresh, in_process=in_process)
        executor: Executor = (
            InlineExecutor(opening, around=OwnRandomState())
            if in_process
            else LocalExecutor(opening, workers=1, log_folder=fresh.logs)
        )
        try:
            for candidate in chain:
                last = _trained(executor, fresh, candidate)
        finally:
            executor.close()
        model = jobs.Workbench(searched.study, fresh).model(name).cpu().eval()
    return Replayed(model=model, valid=last.score.valid, recorded=chain[-1].score.valid)


def _chain(store: Store, name: str) -> list[Candidate]:
    """Return a candidate and its ancestors, the oldest first."""
    if not store.identity_file.exists():
        raise AutopruneError(f"{store.root} must hold a search, but there is no search.json in it.")
    if not store.has_candidate(name):
        raise unknown("finished trial", name, store.candidate_names())
    chain = [store.load_candidate(name)]
    while chain[-1].parent != DENSE:
        chain.append(store.load_candidate(chain[-1].parent))
    for candidate in chain:
        if candidate.seed is None:
            raise AutopruneError(
                f"A candidate must have its seed recorded to be replayed, but {candidate.name} "
                f"has none: an earlier version of autoprune wrote it."
            )
    return chain[::-1]


def _trained(executor: Executor, store: Store, candidate: Candidate) -> Candidate:
    """Run a candidate's job in `store`, where its parent is, and keep what comes of it there."""
    result = run_job(
        executor,
        jobs.evaluate,
        name=candidate.name,
        plan=replace(candidate.plan, kept=None).to_json(),
        parent=candidate.parent,
        seed=candidate.seed,
    )
    again = replace(
        candidate,
        plan=Plan.from_json(result["plan"]),
        score=replace(candidate.score, valid=result["valid"]),
        sha256=result["sha256"],  # another machine's bits may differ
    )
    store.save_candidate(again)
    return again
