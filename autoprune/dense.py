"""The dense model's turn: it is trained or loaded, scored and profiled once, then read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoprune import jobs
from autoprune.asking import RETRIES
from autoprune.errors import AutopruneError
from autoprune.finale import UnexpectedError, run_job
from autoprune.progress import Reporter, Status
from autoprune.pruning.files import check_signed, file_digest, read_json, write_signed, write_whole
from autoprune.results.diagnosis import weak_ground
from autoprune.results.store import RESTORE, Store
from autoprune.running.executor import Executor
from autoprune.searching.candidate import DENSE, Score
from autoprune.study import PruningStudy
from autoprune.training.yardstick import Yardstick

USUAL_CRITERION = "taylor"
"""By which groups are cut to see which of them hurt, if the study searches it."""
SENSITIVITY_SECONDS = 10.0
"""What a search may spend on that, unasked."""
SENSITIVITY_LIMIT = 60.0
"""Seconds after which a worker that hangs on it is ended."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What is known of the dense model."""

    score: Score
    sensitivity: Mapping[str, float]
    lamp: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """LAMP scores of its channels, by group."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """By how much its loss rises without each block that may be dropped."""
    noise: float = 0.0
    """Standard error of its score, for another draw of the validation split; 0 if not known."""


def prepare_dense(
    study: PruningStudy,
    store: Store,
    executor: Executor,
    reporter: Reporter,
    *,
    latency: Mapping[str, Any] | None,
) -> Dense:
    """Return what is known of the dense model, which a worker prepares unless the store has it.

    The reporter is told how far that has come, and what of the model and the data will not bear
    much.

    Parameters
    ----------
    latency
        How latency is measured, as `jobs.prepare_dense` takes it; None measures none.

    Raises
    ------
    AutopruneError
        If the model cannot be trained and scored.
    """
    if not store.dense_file.exists():
        write_signed(store.dense_file, _prepared(study, store, executor, reporter, latency))
        store.drop_checkpoint(DENSE)  # one that came from another machine
    file = store.dense_file
    value = check_signed(file, read_json(file), way_out=RESTORE, required=False)
    weights = store.weights(DENSE)
    if "sha256" in value and (not weights.exists() or file_digest(weights) != value["sha256"]):
        raise AutopruneError(
            f"{weights} must be as the search wrote it, but it was altered, cut short or deleted. "
            f"{RESTORE}"
        )
    for problem in _weak_ground(study, value):
        reporter.note(problem)
    return Dense(
        score=Score(**{f: value[f] for f in Score.__dataclass_fields__ if f in value}),
        sensitivity=value["sensitivity"],
        lamp=value.get("lamp", {}),
        blocks=value.get("blocks", {}),
        noise=value.get("yardstick", {}).get("standard_error") or 0.0,
    )


def _prepared(
    study: PruningStudy,
    store: Store,
    executor: Executor,
    reporter: Reporter,
    latency: Mapping[str, Any] | None,
) -> dict[str, Any]:
    reporter.update(Status(stage="dense"))

    def tell(value: Mapping[str, Any]) -> None:
        reporter.update(
            Status(
                stage="dense",
                done=value["epoch"],
                total=value["epochs"],
                metric=study.task.metric,
                dense_valid=value["valid"],
            )
        )

    try:
        return run_job(executor, jobs.prepare_dense, tell, latency=latency)
    except UnexpectedError as error:
        log = store.logs / "dense.log"
        write_whole(log, error.detail.encode())
        raise AutopruneError(
            f"The dense model must be trained and scored first, but that raised {error} "
            f"Mend the model or the data; {log} has the traceback."
        ) from error


def note_sensitivity(
    study: PruningStudy, store: Store, executor: Executor, reporter: Reporter
) -> None:
    """Find out which groups of the dense model hurt, if that takes little.

    Nothing is trained for it, so that it uses no epochs; how long it took is on record. Nothing
    in the search depends on it.
    """
    if store.sensitivity_file.exists():
        return
    criteria = study.space.criteria
    criterion = USUAL_CRITERION if USUAL_CRITERION in criteria else criteria[0]
    try:
        found = sensitivity_of(
            study,
            store,
            executor,
            reporter,
            criterion=criterion,
            within=SENSITIVITY_SECONDS,
            tries=1,
        )
    except (AutopruneError, UnexpectedError) as error:
        reporter.note(f"Which groups hurt could not be found out: {error}")
        return
    if found["groups"]:
        write_signed(store.sensitivity_file, found)


def sensitivity_of(
    study: PruningStudy,
    store: Store,
    executor: Executor,
    reporter: Reporter,
    *,
    criterion: str,
    fractions: Sequence[float] = jobs.FRACTIONS,
    within: float | None = None,
    tries: int = RETRIES + 1,
) -> dict[str, Any]:
    """Return which groups of the prepared dense model hurt, as ``sensitivity.json`` has it."""

    def tell(value: Mapping[str, Any]) -> None:
        done, total = value["done"], value["total"]
        reporter.update(Status(stage="sensitivity", done=done, total=total, unit="groups"))

    found = run_job(
        executor,
        jobs.sensitivity,
        tell,
        criterion=criterion,
        fractions=list(fractions),
        within=within,
        tries=tries,
    )
    return {
        "format": 1,
        "study": study.name,
        "metric": study.task.metric,
        "higher_is_better": study.task.higher_is_better,
        "weights": file_digest(store.weights(DENSE)),
        **found,
    }


def _weak_ground(study: PruningStudy, dense: Mapping[str, Any]) -> list[str]:
    """Say what of the dense model and the data will not bear much."""
    if "yardstick" not in dense:
        return []  # of an earlier version's search
    return weak_ground(
        metric=study.task.metric,
        higher_is_better=study.task.higher_is_better,
        valid=dense["valid"],
        yardstick=Yardstick(**dense["yardstick"]),
        calibration_samples=dense["calibration_samples"],
        calibration_asked=dense["calibration_asked"],
    )
