"""All that the report shows, read from a search's folder as one value that JSON can carry."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import read_json
from autoprune.pruning.groups import Grouping
from autoprune.redaction import redacted
from autoprune.results.choosing import WorthALook, worth_a_look
from autoprune.results.growth import growth, plane_of
from autoprune.results.importances import importances
from autoprune.results.report.harm import harm
from autoprune.results.report.models import baselines, front_models, latencies
from autoprune.results.report.setup import settings, versions
from autoprune.results.report.trials import TrialFacts, is_uniform, read_trials
from autoprune.results.report.words import advice, recipe
from autoprune.results.result import Model, SearchResult, open_result
from autoprune.results.store import FORMAT, Store
from autoprune.searching.candidate import DENSE, FINAL

if TYPE_CHECKING:
    import optuna

ROUNDED = 5
"""Digits of the scores and losses that the page gets."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a report is made of."""

    study: str
    result: SearchResult | None
    """None if the search has no front; `why_none` says why."""
    chosen: WorthALook[Model] | None
    why_none: str
    page: Mapping[str, Any]
    """What the page's scripts get."""


def read_facts(out: Path, *, shown_as: Path | None = None) -> Facts:
    """Read a search's output folder.

    Parameters
    ----------
    shown_as
        How commands on the page name the folder; itself if it is None.

    Raises
    ------
    AutopruneError
        If it holds no search, another version's, or one that was altered.
    """
    identity = _identity(out)
    store = Store(out)
    result, why_none = _result(store)
    front = read_json(store.front_file) if result is not None else {}
    grouping = store.load_grouping() if store.groups_file.exists() else None
    dense = read_json(store.dense_file) if store.dense_file.exists() else {}
    studies = _studies(store, str(identity.get("study", "")))
    trials = read_trials(store.root, grouping, studies)
    higher = bool(identity.get("higher_is_better", True))
    if result is None and not why_none:
        why_none = _why_no_front(trials)
    chosen = None
    if result is not None and result.front:
        chosen = worth_a_look(result.front, dense=result.dense, higher_is_better=higher)
    about = {
        "study": str(identity.get("study", "")),
        "metric": str(identity.get("metric", "score")),
        "higher": higher,
        "seed": identity.get("seed"),
        "objectives": front.get("objectives", identity.get("objectives", [])),
        "epochs": front.get("epochs", sum(t.epochs for t in trials)),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "out": str(shown_as or out),
        "states": _counts(trials),
    }
    page = {
        **about,
        "dense": _dense(front, dense),
        "yardstick": dense.get("yardstick", {}),
        "groups": _groups(grouping, dense),
        "trials": [_row(trial, grouping) for trial in trials],
        "front": front_models(result, front, store, shown_as or out, trials),
        "baselines": baselines(front),
        "point": None if chosen is None else chosen.point,
        "cards": [] if chosen is None or result is None else advice(result, chosen),
        "harm": harm(store.root),
        "growth": _growth(trials, dense, higher=higher),
        "importances": _importances(studies, higher=higher),
        "proxies": front.get("proxies", {}),
        "blocked": _blocked(front, grouping),
        "rejected": [
            {"name": m["name"], "problems": m.get("problems", [])}
            for m in front.get("rejected", ())
        ],
        "versions": versions(front, store),
        "settings": settings(identity, store),
    }
    return Facts(
        study=about["study"], result=result, chosen=chosen, why_none=why_none, page=_plain(page)
    )


def _identity(out: Path) -> Mapping[str, Any]:
    """Return what ``search.json`` says; raise `AutopruneError` if it is no search of ours."""
    file = out / "search.json"
    if not file.exists():
        front = out / "front.json"
        if not front.exists():
            raise AutopruneError(
                f"OUT must be a search's output folder, but {out} "
                f"{'has no search.json' if out.is_dir() else 'is no folder'}. "
                f"`autoprune search` prints where it writes."
            )
        file = front
    identity = read_json(file)
    known = identity.get("format") if isinstance(identity, dict) else None
    if not isinstance(identity, dict) or known != FORMAT:
        raise AutopruneError(
            f"OUT must be of format {FORMAT}, but {file} is of format {known}: another version of "
            f"autoprune wrote it. Make the report with that version, or search again."
        )
    return identity


def _result(store: Store) -> tuple[SearchResult | None, str]:
    """Return the result, or None and why there is none as far as that is known yet."""
    if not store.front_file.exists():
        return None, ""
    result = open_result(store.root)
    return (result, "") if result.front else (None, "")


def _why_no_front(trials: Sequence[TrialFacts]) -> str:
    """Say why a search has no front."""
    counts = _counts(trials)
    if not trials:
        return "No trial has ended yet: the dense model was prepared, or not even that."
    if not counts.get("complete"):
        failed = [t for t in trials if t.cause]
        last = f" The last one that failed: {redacted(failed[-1].cause)}" if failed else ""
        return (
            f"None of its {len(trials)} trials was completed, so there is nothing to choose from."
            f"{last}"
        )
    return (
        "Its trials are on record, but no front was exported: it is running still, or was ended "
        "before. The same `autoprune search` command goes on where it stopped."
    )


def _studies(store: Store, name: str) -> list[optuna.Study]:
    """Open the search's study and its final stage's for reading, if they are in its folder."""
    if not store.journal.exists():
        return []
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = JournalStorage(JournalFileBackend(str(store.journal)))
        names = [name, name + FINAL]
        there = optuna.get_all_study_names(storage)
        return [optuna.load_study(study_name=n, storage=storage) for n in names if n in there]
    except Exception as error:
        raise AutopruneError(
            f"{store.journal} must be the search's Optuna journal, but reading it raised "
            f"{first_line(error)}. Was it altered?"
        ) from error
    finally:
        optuna.logging.set_verbosity(before)


def _counts(trials: Sequence[TrialFacts]) -> dict[str, int]:
    states = [t.state for t in trials if not t.is_final]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _dense(front: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("params", "macs", "size_bytes", "memory_bytes", "valid", "test", "latency_ms")
    known = front.get("dense", {})
    found = {name: known.get(name, dense.get(name)) for name in kept}
    return found | {"latencies": latencies(front, DENSE, known)}


def _groups(grouping: Grouping | None, dense: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a plan has widths of: the groups, then the blocks."""
    if grouping is None:
        return []
    sensitivity = dense.get("sensitivity", {})
    rows: list[dict[str, Any]] = [
        {
            "name": group.name,
            "channels": group.channels,
            "layers": list(
                dict.fromkeys(
                    s.tensor.rpartition(".")[0] or s.tensor for s in group.slices if s.role == "out"
                )
            ),
            "sensitivity": sensitivity.get(group.name),
        }
        for group in grouping.groups
    ]
    return rows + [{"name": block, "channels": 1, "block": True} for block in grouping.blocks]


def _row(trial: TrialFacts, grouping: Grouping | None) -> dict[str, Any]:
    """Return a trial as the page gets it: short names, as there may be thousands."""
    channels = {} if grouping is None else {g.name: g.channels for g in grouping.groups}
    names = list(channels) + ([] if grouping is None else list(grouping.blocks))
    return {
        "name": trial.name,
        "state": trial.state,
        "final": trial.is_final,
        "params": trial.params,
        "macs": trial.macs,
        "valid": trial.valid,
        "parent": trial.parent,
        "criterion": trial.criterion,
        "sparsify": (trial.sparsify or {}).get("method", ""),
        "epochs": trial.epochs,
        "seed": trial.seed,
        "seconds": trial.seconds,
        "latency": trial.latency_ms,
        "predicted": trial.predicted,
        "cause": redacted(trial.cause),
        "curve": trial.curve,
        "losses": trial.losses,
        "widths": None if trial.widths is None else [trial.widths.get(n) for n in names],
        "uniform": trial.state == "complete" and is_uniform(trial.widths, channels),
        "recipe": recipe(trial),
    }


def _growth(
    trials: Sequence[TrialFacts], dense: Mapping[str, Any], *, higher: bool
) -> dict[str, Any] | None:
    done = [t for t in trials if t.state == "complete" and t.params and t.valid is not None]
    if not done or "valid" not in dense:
        return None
    points = [(t.params or 0, t.valid or 0.0) for t in done]
    plane = plane_of(
        dense_params=dense["params"],
        dense_valid=dense["valid"],
        higher_is_better=higher,
        chance=dense.get("yardstick", {}).get("chance"),
        scores=[score for _, score in points],
    )
    if plane is None:
        return None
    return {
        "names": [t.name for t in done],
        "values": growth(points, plane),
        "floor": abs(plane.floor),
        "ceiling": abs(plane.ceiling),
    }


def _importances(studies: Sequence[optuna.Study], *, higher: bool) -> dict[str, Any] | None:
    if not studies:
        return None
    found = importances(studies[0], higher_is_better=higher)
    return None if found is None else asdict(found)


def _blocked(front: Mapping[str, Any], grouping: Grouping | None) -> list[dict[str, Any]]:
    if "blocked" in front:
        return list(front["blocked"])
    return [] if grouping is None else [asdict(b) for b in grouping.blocked]


def _plain(value: Any) -> Any:
    """Return a value as JSON can have it: numbers that are none are left out, others are short."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{ROUNDED}g}") if math.isfinite(value) else None
    return value
