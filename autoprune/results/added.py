"""What is found out of a search's models after its end, and kept in ``front.json``. No torch here.

``bench`` holds measurements of latency, ``baselines`` uniformly pruned models. Both stay when a
search is gone on with and exports its front anew.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.pruning.files import check_signed, read_json, write_signed
from autoprune.redaction import redacted
from autoprune.results.records import AddedRecord, FrontRecord
from autoprune.results.spool import Spool, load_destination
from autoprune.results.store import Store
from autoprune.results.sync import sync
from autoprune.searching.candidate import DENSE

BENCH, BASELINES = "bench", "baselines"
OWN = ""
"""The key of a search's own run."""
SAME = ("runtime", "batch_size", "threads", "device", "cpu")
"""What two measurements share of which the later one takes the earlier one's place."""


def carried(front_file: Path, names: Collection[str]) -> dict[str, Any]:
    """Return what an earlier ``front.json`` holds that the next one must keep.

    `names` are the models on the new front: of others, no measurement is kept.
    """
    if not front_file.exists():
        return {}
    try:
        old = check_signed(front_file, read_json(front_file), way_out="", required=False)
    except AutopruneError:
        return {}  # it was altered, and is written anew
    kept: dict[str, Any] = {name: old[name] for name in (BENCH, BASELINES) if name in old}
    if BENCH in kept:
        there = {DENSE, *names}
        kept[BENCH] = [
            {**run, "models": {n: m for n, m in run["models"].items() if n in there}}
            for run in kept[BENCH]
        ]
    return kept


def with_bench(front: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a ``front.json`` with new measurements, in the place of earlier ones of their kind."""
    new = {tuple(run[name] for name in SAME) for run in runs}
    old = [r for r in front.get(BENCH, []) if tuple(r[name] for name in SAME) not in new]
    return {**front, BENCH: [*old, *runs]}


def write_front(store: Store, front: Mapping[str, Any]) -> None:
    """Write ``front.json``; the caller holds the folder's lock."""
    try:
        write_signed(store.front_file, front)
    except OSError as error:
        raise AutopruneError(
            f"{store.front_file} must be writable to keep the figures, but is not: "
            f"{error.strerror or error}."
        ) from error


# --- MLflow -------------------------------------------------------------------------------------


def record(
    store: Store, metrics: Mapping[str, Mapping[str, float]], files: Sequence[Path]
) -> list[str]:
    """Bring MLflow what was found out, if it was told of the search; return what could not be.

    Parameters
    ----------
    metrics
        By the name of a model on the front, `DENSE`, or `OWN` for the search's own run.
    files
        Files in the folder, for the search's own run.
    """
    if not store.spool.is_dir():
        return []
    destination = load_destination(store.spool)
    with store.locked():
        spool = Spool(store.spool, destination)
        keys = {**_keys(spool), DENSE: DENSE, OWN: OWN}
        spool.write(
            AddedRecord(
                metrics={keys[name]: found for name, found in metrics.items() if name in keys},
                files=[str(file.relative_to(store.root)) for file in files],
                time=time.time(),
            )
        )
    if not destination.whole:
        out = shlex.quote(str(store.root))
        return [
            f"MLflow gets the figures with `autoprune sync {out} --tracking-uri ...`: "
            f"{destination.uri} held a secret that was not stored."
        ]
    done = sync(store, uri=None, experiment=None)
    return [redacted(problem) for problem in done.problems]


def _keys(spool: Spool) -> dict[str, str]:
    """Return the trials whose runs the models on the front have, by the models' names."""
    front = spool.latest("front")
    if not isinstance(front, FrontRecord):
        return {}
    return {Path(model.folder).name: model.key for model in front.models}
