"""autoprune's own search as a method, with its samplers and with each idea off."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from front_bench import DROPOUT, Bench, chain_length
from front_record import Record
from torch import nn

import autoprune
from autoprune import FineTune, PruningStudy, Space
from autoprune.progress import EndedTrial, Status
from autoprune.pruning.cut import load_state
from autoprune.pruning.weights import load_tensors
from autoprune.results.store import Store
from autoprune.searching.history import PARAMS, VALID
from autoprune.searching.journal import open_journal
from autoprune.searching.optuna_study import open_study
from autoprune.searching.strategy import Strategy

EPOCHS = (1, 8)
"""Fewest and most epochs of a trial, on every task."""


def space_of(recipe: Mapping[str, Any]) -> Space:
    """Return what a search may vary: it begins at the recipe that the baselines have, too.

    That recipe was tuned at one size; it is in the middle of each range.
    """
    weight, other = recipe["distill_weight"], {"l2": "taylor", "taylor": "l2"}
    return Space(
        criteria=(recipe["criterion"], other[recipe["criterion"]]),
        epochs=EPOCHS,
        lr=(recipe["lr"] / 2, recipe["lr"] * 2),
        batch_size=recipe["batch_size"],
        weight_decay=FineTune(epochs=1, lr=1.0).weight_decay,
        distill_weight=(0.0, min(2 * weight, 1.0)),
        temperature=(recipe["temperature"] / 2, recipe["temperature"] * 2),
        dropout=DROPOUT,
        optimizer=recipe.get("optimizer", "adamw"),
    )


WIDE_RATES = {"lr": Space().lr}
"""What a study is searched with that says nothing of learning rates, instead of what was tuned."""
LONG = {"epochs": EPOCHS[1]}
"""Of trials that are all as long as ours may be, so that there is something to stop."""
VARIANTS: dict[str, dict[str, Any]] = {
    "autoprune": {},
    "random-lineage": {"sampler": "random"},
    "tpe-lineage": {"sampler": "tpe"},
    "no-inherit": {"inherit": False},
    "no-scouts": {"strategy": Strategy(scouts=0)},
    "no-blocks": {"space": {"depth": False}},
    "no-depth-first": {"strategy": Strategy(depth_first=False)},
    "flat-recipe": {"strategy": Strategy(recipe_by_size=False)},
    "no-foresight": {"strategy": Strategy(foresight=False)},
    "no-refinement": {"strategy": Strategy(chain_share=1.0)},
    "chain-only": {"strategy": Strategy(scouts=0, chain_share=1.0)},
    "stopping": {"early_stop": True},
    "wide-rates": {"space": WIDE_RATES},
    "wide-rates-untried": {"space": WIDE_RATES, "strategy": Strategy(try_rates=False)},
    "random-long": {"sampler": "random", "space": LONG},
    "random-long-no-stopping": {"sampler": "random", "space": LONG, "early_stop": False},
    "tpe-long": {"sampler": "tpe", "space": LONG},
    "tpe-long-no-stopping": {"sampler": "tpe", "space": LONG, "early_stop": False},
    "reconstruct": {"space": {"reconstruct": True}},
}
"""Settings of each search, over the usual ones; ``space`` holds changes to `space_of`."""
EVEN = ("random-lineage", "tpe-lineage")
"""Searches whose sampler knows nothing of epochs: each trial has as many as a chain's model."""


class SearchIsOver(Exception):  # noqa: N818  # nothing went wrong
    """The search is over; exporting its front would add nothing to it."""


class Watcher:
    """A reporter that notes every finished trial with its weights, and what was spent until then.

    What it does itself is not charged.
    """

    def __init__(self, bench: Bench, record: Record, store: Store) -> None:
        self.ended: list[tuple[EndedTrial, nn.Module | None, dict[str, float]]] = []
        self._bench = bench
        self._record = record
        self._store = store
        self._over = False

    def update(self, status: Status) -> None:
        if status.ended is not None:
            with self._record.paused():
                spent = self._record.spent()
                self.ended.append((status.ended, self._model(status.ended), spent))
        used_up = status.unit == "epochs" and status.done >= status.total and not status.running
        if (used_up or status.stage == "export") and not self._over:
            self._over = True
            raise SearchIsOver

    def note(self, message: str) -> None:
        print(message)

    def _model(self, ended: EndedTrial) -> nn.Module | None:
        if ended.state != "complete":
            return None
        weights = self._store.weights(ended.name)
        kept = self._store.load_candidate(ended.name).plan.kept
        if kept is None or not weights.exists():
            return None
        dropped = self._store.load_grouping().dropped(kept)
        return load_state(self._bench.dense(), load_tensors(weights), dropped=dropped)


def study_of(bench: Bench, method: str) -> PruningStudy:
    changes = dict(VARIANTS[method].get("space", {}))
    if method in EVEN:
        changes.setdefault("epochs", bench.epochs // chain_length(bench.epochs))
    return PruningStudy(
        name=f"{bench.spec.name}-{method}",
        model=bench.spec.model,
        example=bench.spec.example,
        task=bench.task,
        checkpoint=bench.dense_file,
        space=replace(space_of(bench.recipe), **changes),
        final_epochs=0,
        device="cpu",
    )


def search(bench: Bench, record: Record, method: str) -> None:
    """Search until the epochs are used up; failed and stopped trials' epochs are among them."""
    out = bench.work.root / "searches" / bench.spec.name / f"{method}-s{bench.seed}"
    shutil.rmtree(out, ignore_errors=True)  # of a run that was interrupted
    settings = {name: value for name, value in VARIANTS[method].items() if name != "space"}
    study = study_of(bench, method)
    watcher = Watcher(bench, record, Store(out))
    try:
        autoprune.search(
            study,
            out=out,
            seed=bench.seed,
            workers=0,
            tracking_uri="none",
            reporter=watcher,
            budget_epochs=bench.epochs,
            **settings,
        )
    except SearchIsOver as over:
        if isinstance(over.__context__, KeyboardInterrupt):  # it exports what there is
            raise KeyboardInterrupt from None
    with record.paused():
        take_up(record, watcher, trials_of(study, out))


def trials_of(study: PruningStudy, out: Path) -> dict[str, dict[str, Any]]:
    """Return what the Optuna study knows of each trial, by the candidate's name."""
    journal = open_journal(Store(out).journal)
    objectives = [(study.task.metric, study.task.higher_is_better), ("params", False)]
    trials = open_study(study.name, storage=journal, objectives=objectives).get_trials()
    return {f"t{trial.number:03d}": trial.user_attrs for trial in trials}


def take_up(record: Record, watcher: Watcher, trials: dict[str, dict[str, Any]]) -> None:
    """Record what was finished, with the epochs of all trials before it."""
    epochs = 0.0
    for ended, model, spent in watcher.ended:
        known = trials[ended.name]
        epochs += known.get("epochs", 0)
        if ended.state == "complete":
            record.add(model, known[VALID], epochs=epochs, params=known[PARAMS], spent=spent)
            epochs = 0.0
    counts = {"trials": len(watcher.ended), "models": len(record.models)}
    record.notes.append(", ".join(f"{count} {name}" for name, count in counts.items()))
