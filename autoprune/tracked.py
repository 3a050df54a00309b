"""What MLflow is told of a search as a whole: its parameters, tags and totals."""

from __future__ import annotations

from collections.abc import Mapping

from autoprune.pruning.cost import CostModel
from autoprune.pruning.groups import Grouping
from autoprune.results.growth import plane_of
from autoprune.results.provenance import git_commit, versions
from autoprune.results.records import KIND, TrialRecord
from autoprune.results.result import SearchResult
from autoprune.searching.candidate import DENSE, Score
from autoprune.searching.proxies import Correlation
from autoprune.settings import Settings
from autoprune.study import PruningStudy


def search_params(study: PruningStudy, grouping: Grouping) -> dict[str, str | int]:
    """Return what is the same whenever this search is gone on with."""
    return {
        "study": study.name,
        "final_epochs": study.final_epochs,
        "dense_params": CostModel(grouping).params(grouping.channels),
        "groups": len(grouping.groups),
    }


def setting_tags(settings: Settings) -> dict[str, str]:
    """Return the settings, which may differ from one sitting to the next."""
    hidden = ("storage", "tracking_uri")  # they may hold passwords
    names = [n for n in Settings.__dataclass_fields__ if n not in hidden]
    return {f"setting.{n}": str(getattr(settings, n)) for n in names}


def search_tags(study: PruningStudy) -> dict[str, str]:
    """Return what a search and each of its trials are tagged with: versions, commit and seed."""
    commit = git_commit()
    tags = {f"version.{name}": version for name, version in versions().items()}
    return {
        **tags,
        "seed": str(study.seed),
        "study": study.name,
        **({"git_commit": commit} if commit else {}),
    }


def totals(
    result: SearchResult, *, dense: Score, epochs: int, proxies: Mapping[str, Correlation]
) -> dict[str, float]:
    """Return the metrics of a finished search that has trained for so many epochs in all."""
    found: dict[str, float] = {f"trials_{state}": n for state, n in result.trials.items()}
    found |= {
        "epochs": epochs,
        "front_size": len(result.front),
        "dense_valid": dense.valid,
        **_measured(proxies),
    }
    plane = plane_of(
        dense_params=dense.params,
        dense_valid=dense.valid,
        higher_is_better=result.higher_is_better,
        scores=[m.valid for m in result.front],
    )
    if plane is not None:
        found["hypervolume"] = plane.share([(m.params, m.valid) for m in result.front])
    return found


def dense_record(study: PruningStudy, dense: Score, *, prepared: float) -> TrialRecord:
    """Return the dense model as it is logged: a run of its own, to compare the others with.

    `prepared` is when it was scored, in seconds since the epoch.
    """
    metrics: dict[str, float] = {
        "valid": dense.valid,
        "params": dense.params,
        "params_fraction": 1.0,
        "macs": dense.macs,
        "size_bytes": dense.size_bytes,
    }
    if dense.memory is not None:
        metrics["memory_bytes"] = dense.memory
    if dense.latency is not None:
        metrics["latency_ms"] = 1e3 * dense.latency
    return TrialRecord(
        key=DENSE,
        run_name=f"dense 100% params {dense.valid:.3f}",
        state="complete",
        params={},
        metrics=metrics,
        tags={**search_tags(study), KIND: DENSE},
        note="The dense model, as it was before the search.",
        started=prepared,
        ended=prepared,
    )


def _measured(proxies: Mapping[str, Correlation]) -> dict[str, float]:
    return {
        f"proxy.{name}.{kind}": value
        for name, found in proxies.items()
        for kind, value in (("within_sizes", found.within_sizes), ("pooled", found.pooled))
        if value is not None
    }
