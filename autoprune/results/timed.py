"""Latencies on record: those of the search's end, and what `autoprune bench` found. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import read_json
from autoprune.results.limits import Latencies
from autoprune.results.result import SearchResult


def latencies_of(result: SearchResult, runtime: str | None = None) -> Latencies:
    """Return the milliseconds of a batch, by model.

    Of a `runtime`, the latest figures of `autoprune bench` count, and else those of the search's
    end. Without one, `Model.latency_ms` does, and where that is missing the latest of the bench.
    """
    file = result.out / "front.json"
    try:
        return _found(result, read_json(file), runtime)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AutopruneError(
            f"{file} must hold latencies as autoprune wrote them, but reading them gave "
            f"{first_line(error)}. Was it altered?"
        ) from error


def _found(result: SearchResult, front: Mapping[str, Any], runtime: str | None) -> Latencies:
    runs = [r for r in front.get("bench", []) if runtime in (None, r["runtime"])]
    if runtime is None and any(m.latency_ms is not None for m in result.front):
        return {m.name: m.latency_ms for m in result.front}
    if runs:
        latest = max(runs, key=lambda run: float(run["time"]))
        return {name: 1e3 * timed["seconds"] for name, timed in latest["models"].items()}
    return {m["name"]: _at_the_end(m, runtime) for m in front["front"]}


def _at_the_end(model: Mapping[str, Any], runtime: str | None) -> float | None:
    found = [x for x in model.get("latencies", []) if x["engine"] == runtime]
    return 1e3 * found[0]["seconds"] if found else None


def check_measured(result: SearchResult, latencies: Latencies, runtime: str | None) -> None:
    """Raise `AutopruneError` if no model of the front has a latency."""
    if all(latencies.get(m.name) is None for m in result.front):
        by = f" by runtime {runtime!r}" if runtime else ""
        out = shlex.quote(str(result.out))
        option = f" --runtime {runtime}" if runtime else ""
        raise AutopruneError(
            f"There must be latencies{by} to compare with, but none is on record in "
            f"{result.out / 'front.json'}. Run `autoprune bench {out}{option}` first."
        )
