"""A finished search's folder of any size, as a search would have left it, made up in seconds.

Nothing was trained: scores follow from sizes, with noise. All else is written by what writes it in
a search, so that whatever reads the folder has as much to do as with a real one.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from autoprune.pruning.cost import CostModel
from autoprune.pruning.files import write_json
from autoprune.pruning.groups import Blocked, ChannelGroup, Grouping, Product, Slice
from autoprune.pruning.plan import FineTune, Plan
from autoprune.results.records import StartRecord, TrialRecord, to_json
from autoprune.results.store import Store
from autoprune.searching.attributes import CAUSE, EPOCHS, PARAMS, PARENT, VALID, WORK
from autoprune.searching.candidate import DENSE, Candidate, Score, trial_name
from autoprune.searching.pareto import front_of

TAGS = {"version.autoprune": "0.1.0", "version.torch": "2.13.0", "seed": "0"}
EPOCHS_EACH = 12


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that ended, and all that is on record of it."""

    candidate: Candidate
    state: str
    params: dict[str, Any]
    cause: str = ""


def fabricate(
    root: Path,
    *,
    trials: int = 20,
    groups: int = 6,
    name: str = "made-up",
    group: str = "stage{}.conv",
    seed: int = 0,
    complete: bool = True,
    exported: bool = True,
    tracked: bool = True,
) -> Path:
    """Write a search to `root`; return it.

    Parameters
    ----------
    group
        Pattern of the groups' names; what is in braces is their number.
    complete, exported, tracked
        Whether trials were completed, the front was exported, and records were kept for MLflow.
    """
    rng = random.Random(seed)
    grouping = chain([group.format(number) for number in range(groups)])
    cost, store = CostModel(grouping), Store(root)
    dense = cost.params(grouping.channels)
    identity = {
        "study": name,
        "metric": "accuracy",
        "higher_is_better": True,
        "objectives": ["score", "params"],
        "seed": seed,
        "study_settings": {"epochs": [8, 32], "criteria": ["taylor", "l2"]},
    }
    store.open(identity)
    store.save_grouping(grouping)
    sensitivity = {g.name: rng.gauss(-15, 2) for g in grouping.groups}
    yardstick = {"samples": 2000, "standard_error": 0.0035, "chance": 0.1}
    costs = {"params": dense, "macs": 64 * dense, "size_bytes": 4 * dense}
    write_json(
        store.dense_file,
        {"valid": 0.971, **costs, "sensitivity": sensitivity, "yardstick": yardstick},
    )
    ended = [*_trials(rng, trials, grouping, cost, complete=complete)]
    for trial in ended:
        if trial.state == "complete":
            store.save_candidate(trial.candidate)
    _write_journal(store.journal, name, ended, distributions(grouping))
    if tracked:
        _write_spool(store.spool, ended, grouping, dense)
    if complete and exported:
        _write_front(store, name, ended, grouping, dense)
        write_json(root / "sensitivity.json", _sensitivity(rng, grouping))
    return root


def chain(names: Sequence[str]) -> Grouping:
    """Return the grouping of convolutions in a row, each with a BatchNorm, and a blocked head."""
    channels = [32 * (1 + number // 8) for number in range(len(names))]
    groups, shapes, positions = [], {}, {}
    before = 3
    for number, (name, count) in enumerate(zip(names, channels, strict=True)):
        weight = f"{name}.weight"
        shapes |= {weight: (count, before, 3, 3), f"{name}.norm.weight": (count,)}
        positions[weight] = (Product(extents=(), times=Fraction(64)),)
        index = np.arange(count).reshape(-1, 1)
        reader = f"{names[number + 1]}.weight" if number + 1 < len(names) else "head.weight"
        slices = (
            Slice(tensor=weight, dim=0, role="out", index=index),
            Slice(tensor=f"{name}.norm.weight", dim=0, role="out", index=index),
            Slice(tensor=reader, dim=1, role="in", index=index),
        )
        groups.append(ChannelGroup(name=name, channels=count, slices=slices))
        before = count
    shapes["head.weight"] = (10, before)
    positions["head.weight"] = (Product(extents=(), times=Fraction(1)),)
    blocked = Blocked(layer="head", params=10 * before, reason="its outputs are the model's")
    return Grouping(groups=tuple(groups), blocked=(blocked,), shapes=shapes, positions=positions)


def distributions(grouping: Grouping) -> dict[str, BaseDistribution]:
    """Return what such a search varies."""
    found: dict[str, BaseDistribution] = {
        f"sparsity/{g.name}": FloatDistribution(0.0, 1.0) for g in grouping.groups
    }
    return found | {
        "criterion": CategoricalDistribution(("taylor", "l2")),
        "batch_size": CategoricalDistribution((32, 64)),
        "epochs": IntDistribution(8, 32, log=True),
        "lr": FloatDistribution(1e-3, 1e-1, log=True),
        "distill_weight": FloatDistribution(0.0, 1.0),
    }


def _trials(
    rng: random.Random, count: int, grouping: Grouping, cost: CostModel, *, complete: bool
) -> Iterable[Ended]:
    parents: list[Candidate] = []
    for number in range(count):
        left = 10 ** rng.uniform(-1.8, 0.0)
        even = number % 10 == 3  # every channel group keeps one share
        share = {g.name: left if even else left * rng.uniform(0.5, 1.0) for g in grouping.groups}
        widths = {g.name: max(round(share[g.name] * g.channels), 1) for g in grouping.groups}
        params = cost.params(widths)
        tuning = FineTune(
            epochs=EPOCHS_EACH,
            lr=10 ** rng.uniform(-3, -1),
            batch_size=rng.choice([32, 64]),
            distill_weight=rng.random(),
        )
        plan = Plan(widths=widths, criterion=rng.choice(["taylor", "l2"]), finetune=tuning)
        plan = plan.with_kept({n: tuple(range(width)) for n, width in widths.items()})
        final = _score(rng, params / cost.params(grouping.channels), tuning, even=even)
        state = rng.choices(["complete", "stopped", "failed"], [0.85, 0.1, 0.05])[0]
        state = state if complete else "failed"
        able = [p for p in parents if p.params >= params]
        parent = min(able, key=lambda p: p.params, default=None)
        curve = [final - (0.3 + 0.1 * rng.random()) * 0.6**e for e in range(EPOCHS_EACH)]
        candidate = Candidate(
            name=trial_name(number),
            trial=number,
            plan=plan,
            score=Score(valid=final, params=params, macs=64 * params, size_bytes=4 * params),
            parent=parent.name if parent else DENSE,
            epochs=EPOCHS_EACH + (parent.epochs if parent else 0),
            curve=(*curve, final) if state == "complete" else tuple(curve[:4]),
            seed=number,
        )
        if state == "complete":
            parents.append(candidate)
        asked = {f"sparsity/{g.name}": 1 - widths[g.name] / g.channels for g in grouping.groups}
        known = {n: v for n, v in asdict(tuning).items() if n in distributions(grouping)}
        yield Ended(
            candidate=candidate,
            state=state,
            params={**asked, "criterion": plan.criterion, **known},
            cause="TrialError: the loss became NaN" if state == "failed" else "",
        )


def _score(rng: random.Random, share: float, tuning: FineTune, *, even: bool) -> float:
    recipe = 0.01 * abs(math.log10(tuning.lr) + 2) - 0.005 * tuning.distill_weight
    lost = 0.012 * (-math.log10(share)) ** 2 + recipe + 0.01 * even
    return 0.978 - lost - abs(rng.gauss(0, 0.004))


def _sensitivity(rng: random.Random, grouping: Grouping) -> dict[str, Any]:
    shares = [0.25, 0.5, 0.75]
    groups = [
        {
            "name": g.name,
            "channels": g.channels,
            "cells": [
                {
                    "fraction": share,
                    "width": round(share * g.channels),
                    "loss": 0.1,
                    "score": 0.971 - (1 - share) * rng.random() * 0.2,
                }
                for share in shares
            ],
        }
        for g in grouping.groups
    ]
    return {
        "metric": "accuracy",
        "higher_is_better": True,
        "criterion": "taylor",
        "fractions": shares,
        "dense": {"loss": 0.1, "score": 0.971},
        "groups": groups,
    }


# --- the files -----------------------------------------------------------------------------------


class Lines(BaseJournalBackend):
    """Collects what a journal file would hold, without a flush for every line."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += json.loads(json.dumps(logs))

    def write(self, path: Path) -> None:
        path.write_text("".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in self.logs))


class Given(BaseSampler):
    """Samples what it is given."""

    params: dict[str, Any]

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return self.params

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        raise AssertionError(name)

    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        self.space = space


def _write_journal(
    path: Path, name: str, ended: Sequence[Ended], space: dict[str, BaseDistribution]
) -> None:
    lines, sampler = Lines(), Given(space)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(lines)
    directions = ["maximize", "minimize"]
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions, sampler=sampler
    )
    for each in ended:
        sampler.params = each.params
        trial, candidate = study.ask(space), each.candidate
        told: dict[str, Any] = {PARENT: candidate.parent, WORK: "0" * 16, "seed": candidate.seed}
        told |= {"curve": candidate.curve, EPOCHS: max(len(candidate.curve) - 1, 0)}
        if each.cause:
            told[CAUSE] = each.cause
        if each.state == "complete":
            told |= {VALID: candidate.score.valid, PARAMS: candidate.score.params}
        for key, value in told.items():
            trial.set_user_attr(key, value)
        if each.state == "complete":
            study.tell(trial, [candidate.score.valid, float(candidate.score.params)])
        else:
            study.tell(
                trial, state=TrialState.PRUNED if each.state == "stopped" else TrialState.FAIL
            )
    optuna.logging.set_verbosity(before)
    lines.write(path)


def _write_spool(
    folder: Path, ended: Sequence[Ended], grouping: Grouping, dense_params: int
) -> None:
    folder.mkdir()
    start = StartRecord(params={}, tags={**TAGS, "setting.budget": str(len(ended))}, time=0.0)
    (folder / "000000-start.json").write_text(json.dumps(to_json(start)))
    for number, each in enumerate(ended):
        candidate = each.candidate
        share = candidate.params / dense_params
        curve = candidate.curve
        record = TrialRecord(
            key=candidate.name,
            run_name=f"{candidate.name} {share:.1%}",
            state=each.state,  # type: ignore[arg-type]
            params={**each.params, "parent": candidate.parent},
            metrics={
                "params": candidate.params,
                "epochs": len(curve) - 1,
                "seconds": 20.0,
                **({"valid": curve[-1]} if curve else {}),
            },
            curves={"valid": curve[:-1], "loss": [2.0 * 0.7**e for e in range(len(curve) - 1)]},
            tags={**TAGS, **({"cause": each.cause} if each.cause else {})},
            plan=candidate.plan.to_json(),
            sparsity={g.name: 1 - candidate.widths[g.name] / g.channels for g in grouping.groups},
        )
        (folder / f"{number + 1:06d}-trial.json").write_text(json.dumps(to_json(record)))


def _write_front(
    store: Store, name: str, ended: Sequence[Ended], grouping: Grouping, dense_params: int
) -> None:
    done = [each.candidate for each in ended if each.state == "complete"]
    front = front_of(done, higher_is_better=True)
    dense = Candidate(
        name=DENSE,
        trial=-1,
        plan=replace(done[0].plan, widths=grouping.channels),
        score=Score(
            valid=0.971, params=dense_params, macs=64 * dense_params, size_bytes=4 * dense_params
        ),
        parent=DENSE,
        epochs=0,
    )
    states = [each.state for each in ended]
    write_json(
        store.front_file,
        {
            "format": 1,
            "study": name,
            "metric": "accuracy",
            "higher_is_better": True,
            "seed": 0,
            "objectives": ["accuracy", "params"],
            "dense": _entry(dense, None) | {"path": "dense"},
            "front": [_entry(c, c.trial) | {"path": f"front/{c.name}"} for c in front],
            "rejected": [],
            "trials": {s: states.count(s) for s in ("complete", "stopped", "failed")},
            "epochs": EPOCHS_EACH * len(ended),
            "proxies": {
                "epoch0": {
                    "within_sizes": 0.62,
                    "pooled": 0.9,
                    "bins": 6,
                    "binned": len(done),
                    "candidates": len(done),
                }
            },
            "blocked": [asdict(b) for b in grouping.blocked],
            "versions": {"autoprune": "0.1.0", "torch": "2.13.0"},
        },
    )


def _entry(candidate: Candidate, trial: int | None) -> dict[str, Any]:
    score = candidate.score
    seconds = 1e-4 + 1e-9 * score.params
    timed = {"engine": "eager", "batch_size": 1, "threads": 1, "device": "cpu", "runs": 200}
    return {
        "name": candidate.name,
        "trial": trial,
        "params": score.params,
        "macs": score.macs,
        "size_bytes": score.size_bytes,
        "memory_bytes": 4096,
        "valid": score.valid,
        "test": score.valid - 0.004,
        "latency_ms": 1e3 * seconds,
        "latencies": [{"seconds": seconds, "spread": seconds / 10, **timed}],
        "formats": ["safetensors", "pt2", "onnx"],
        "problems": [],
        "verified": True,
    }
