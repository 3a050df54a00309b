"""The front's models as the page gets them: whose weights they have, how to load and serve them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoprune.pruning.files import read_json
from autoprune.results.report.trials import TrialFacts
from autoprune.results.report.words import commands
from autoprune.results.result import SearchResult
from autoprune.results.store import Store
from autoprune.searching.candidate import FINAL

BENCH, BASELINES = "bench", "baselines"
"""What `results.added` adds to ``front.json``; importing that would import MLflow's part."""


def front_models(
    result: SearchResult | None,
    front: Mapping[str, Any],
    store: Store,
    out: Path,
    trials: Sequence[TrialFacts],
) -> list[dict[str, Any]]:
    """Return the front's models, with how to load them and which trial's weights they have."""
    if result is None:
        return []
    runs = _runs(store)
    finals = {t.name: t for t in trials if t.is_final}
    found = []
    for model, entry in zip(result.front, front["front"], strict=True):
        final = finals.get(f"{model.name}{FINAL}")
        # The better of the two was exported, of equals the final stage; see `pool.Pool.better`.
        weights = final.name if final is not None and final.valid == model.valid else model.name
        found.append(
            {
                **asdict(model),
                "latencies": latencies(front, model.name, entry),
                "formats": entry.get("formats", []),
                "problems": entry.get("problems", []),
                "weights": weights,
                "commands": commands(result, model, entry, out=out, run=runs.get(weights)),
            }
        )
    return found


def _runs(store: Store) -> dict[str, str]:
    """Return the trials' runs in the search's own MLflow database, without MLflow's long import."""
    if not store.mlflow_database.exists():
        return {}
    query = (
        "SELECT t.value, t.run_uuid FROM tags t JOIN tags s ON s.run_uuid = t.run_uuid "
        "JOIN runs r ON r.run_uuid = t.run_uuid WHERE r.lifecycle_stage = 'active' AND "
        "t.key = 'autoprune.trial' AND s.key = 'autoprune.search' AND s.value = ?"
    )
    search = read_json(store.identity_file).get("id", "")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{store.mlflow_database.as_uri()}?mode=ro", uri=True)
        ) as database:
            return dict(database.execute(query, (search,)).fetchall())
    except sqlite3.Error:  # another version's tables: there is no command to serve with, then
        return {}


def latencies(
    front: Mapping[str, Any], name: str, entry: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a model's latencies: those of the search's end, then what `autoprune bench` found."""
    found = [{**timed, "when": "at the search's end"} for timed in entry.get("latencies", [])]
    for run in front.get(BENCH, []):
        if name in run["models"]:
            kept = {key: run.get(key) for key in ("batch_size", "threads", "device")}
            timed = {**run["models"][name], "engine": run["runtime"], **kept}
            found.append({**timed, "when": "by autoprune bench"})
    return found


def baselines(front: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return uniformly pruned models to compare the front with, where some were made."""
    kept = ("name", "params", "valid", "test")
    return [{key: model.get(key) for key in kept} for model in front.get(BASELINES, [])]
