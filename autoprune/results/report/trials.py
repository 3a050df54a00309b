"""What is on record of a search's trials: the Optuna study, the candidates, what MLflow is told.

Each of them may be missing. The study knows how every trial ended, the candidates what the finished
ones came to, and the records for MLflow have the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import AutopruneError
from autoprune.pruning.cost import CostModel
from autoprune.pruning.files import read_json
from autoprune.pruning.groups import Grouping, module_of
from autoprune.searching.attributes import CAUSE, EPOCHS, PARENT
from autoprune.searching.candidate import DENSE, FINAL, trial_name
from autoprune.searching.proxies import PREDICTED

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}
CANDIDATE = "candidate"
"""User attribute of the final stage's trials, as `asking` writes it: whom they train on."""
TELLING = 8
"""A width that tells one share from another."""
RECIPE = (
    "lr",
    "optimizer",
    "batch_size",
    "weight_decay",
    "distill_weight",
    "temperature",
    "dropout",
)


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """A trial, as far as it is known."""

    name: str
    number: int
    state: str
    params: int | None = None
    macs: int | None = None
    valid: float | None = None
    """Validation score: the last one, for a trial that was not completed."""
    parent: str = DENSE
    widths: Mapping[str, int] | None = None
    criterion: str = ""
    epochs: int = 0
    """Epochs of training of its own, with a sparsifier too."""
    tuning: Mapping[str, Any] | None = None
    """How it was fine-tuned, see `pruning.plan.FineTune`."""
    sparsify: Mapping[str, Any] | None = None
    steps: int = 1
    reconstruct: bool = False
    granularity: str = "channel"
    curve: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    sparsify_curve: tuple[float, ...] = ()
    seed: int | None = None
    seconds: float | None = None
    latency_ms: float | None = None
    predicted: float | None = None
    cause: str = ""

    @property
    def is_final(self) -> bool:
        return self.name.endswith(FINAL)


def read_trials(
    root: Path, grouping: Grouping | None, studies: Iterable[optuna.Study]
) -> list[TrialFacts]:
    """Return the trials of a search, the final stage's last.

    Parameters
    ----------
    root
        The search's output folder.
    studies
        The search's Optuna study and its final stage's, if they can be read.
    """
    found: dict[str, TrialFacts] = {}
    for study in studies:
        found |= _from_study(study, grouping)
    for file in sorted((root / "candidates").glob("*/candidate.json")):
        _update(found, file, _from_candidate)
    for file in sorted((root / "spool").glob("[0-9]*-trial.json")):
        _update(found, file, _from_record)
    return sorted(found.values(), key=lambda t: (t.is_final, t.number))


Read = Callable[[Mapping[str, Any]], dict[str, Any]]


def _update(found: dict[str, TrialFacts], file: Path, read: Read) -> None:
    value = read_json(file)
    try:
        name = str(value.get("name", value.get("key")))
        if name == DENSE:
            return  # it is recorded beside the trials, and is none
        number = int(name[1:].removesuffix(FINAL))
        known = {key: fact for key, fact in read(value).items() if fact is not None}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AutopruneError(
            f"{file} must be as the search wrote it, but reading it gave "
            f"{type(error).__name__}: {error}. Was it altered?"
        ) from error
    before = found.get(name, TrialFacts(name=name, number=number, state="complete"))
    if before.epochs:
        known.pop("epochs", None)  # what was counted is better than what was planned
    found[name] = replace(before, **known)


def _from_study(study: optuna.Study, grouping: Grouping | None) -> dict[str, TrialFacts]:
    cost = CostModel(grouping) if grouping is not None else None
    found = {}
    for trial in study.get_trials(deepcopy=False):
        known = trial.user_attrs
        final = CANDIDATE in known
        name = f"{known[CANDIDATE]}{FINAL}" if final else trial_name(trial.number)
        if trial.state.name not in STATES:
            continue
        curve = tuple(known.get("curve", ()))
        widths = _asked_widths(trial.params, grouping) if grouping is not None else None
        found[name] = TrialFacts(
            name=name,
            number=int(name[1:].removesuffix(FINAL)),
            state=STATES[trial.state.name],
            params=cost.params(widths) if cost is not None and widths else known.get("params"),
            valid=known.get("valid", curve[-1] if curve else None),
            parent=str(known.get(PARENT, DENSE)),
            widths=widths,
            criterion=str(trial.params.get("criterion", "")),
            epochs=int(known.get(EPOCHS, 0)),
            tuning={n: trial.params[n] for n in RECIPE if n in trial.params},
            curve=curve,
            seed=known.get("seed"),
            seconds=_seconds(trial),
            predicted=known.get(PREDICTED),
            cause=str(known.get(CAUSE, "")),
        )
    return found


def _asked_widths(params: Mapping[str, Any], grouping: Grouping) -> dict[str, int] | None:
    """Return the widths that parameters ask for, before they are rounded to what is allowed."""
    groups = {g.name: g.channels for g in grouping.groups}
    if not any(name.startswith("sparsity/") for name in params):
        return None
    return {
        name: max(round((1.0 - params.get(f"sparsity/{name}", 0.0)) * count), 1)
        for name, count in groups.items()
    } | {block: int(not params.get(f"drop/{module_of(block)}")) for block in grouping.blocks}


def _seconds(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None else trial.duration.total_seconds()


def _from_candidate(value: Mapping[str, Any]) -> dict[str, Any]:
    score, plan = value["score"], value["plan"]
    latency = score.get("latency")
    return {
        "state": "complete",
        "params": score["params"],
        "macs": score["macs"],
        "valid": score["valid"],
        "parent": value["parent"],
        "curve": tuple(value["curve"]),
        "seed": value.get("seed"),
        "latency_ms": None if latency is None else 1e3 * latency,
        "epochs": plan["finetune"]["epochs"],
        **_of_plan(plan),
    }


def _from_record(value: Mapping[str, Any]) -> dict[str, Any]:
    metrics, curves, plan = value["metrics"], value["curves"], value.get("plan")
    valid = metrics.get("valid")
    last = () if valid is None else (valid,)
    found = {
        "state": value["state"],
        "params": metrics.get("params"),
        "macs": metrics.get("macs"),
        "valid": valid,
        "parent": value["params"].get("parent", DENSE),
        "epochs": int(metrics.get("epochs", 0)),
        "losses": tuple(curves.get("loss", ())),
        "sparsify_curve": tuple(curves.get("valid_sparsify", ())),
        "curve": (*curves.get("valid", ()), *last),
        "seconds": metrics.get("seconds"),
        "latency_ms": metrics.get("latency_ms"),
        "cause": value["tags"].get("cause", ""),
    }
    return found | (_of_plan(plan) if plan else {})


def _of_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "widths": plan["widths"],
        "criterion": plan["criterion"],
        "tuning": plan["finetune"],
        "sparsify": plan.get("sparsify"),
        "steps": plan.get("steps", 1),
        "reconstruct": plan.get("reconstruct", False),
        "granularity": plan.get("granularity", "channel"),
    }


def is_uniform(widths: Mapping[str, int] | None, channels: Mapping[str, int]) -> bool:
    """Return whether all groups keep one share of their channels, as far as that can be told.

    >>> is_uniform({"a": 8, "b": 31}, {"a": 16, "b": 64})
    True
    >>> is_uniform({"a": 8, "b": 20}, {"a": 16, "b": 64})
    False
    """
    low, high = 0.0, 1.0
    for name, count in channels.items():
        width = (widths or {}).get(name, 0)
        low = max(low, (width - 0.5) / count if width > 1 else 0.0)  # one channel always stays
        high = min(high, (width + 0.5) / count)
    dense = widths == {**(widths or {}), **channels}
    wide_enough = max((widths or {}).values(), default=0) >= TELLING
    return len(channels) > 1 and wide_enough and low <= high and not dense
