"""What every method of the front benchmark shares: dense model, teacher, recipe, and the record.

All that is cached lies in a work folder: ``dense/`` the dense models, ``recipes/`` what was tuned,
``cells/`` one JSON file for each (task, method, seed) that is finished.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from front_record import size_of
from front_tasks import FrontTask
from torch import nn

from autoprune import FineTune
from autoprune.pruning.cost import CostModel
from autoprune.pruning.criteria import get_criterion, score_groups
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import collect, top_channels
from autoprune.pruning.files import read_json, write_json
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping, restrict
from autoprune.pruning.weights import load_tensors, save_model
from autoprune.searching.allocation import Allocator, Shape
from autoprune.training.calibrate import recalibrate
from autoprune.training.distill import Teacher
from autoprune.training.finetune import finetune
from autoprune.training.task import Batch

TUNING_SEED = 100
"""Of the dense model on which the recipe is tuned; no method is run with it."""
LARGEST, SMALLEST = 0.7, 1 / 316
"""Ends of the range of sizes, as shares of the dense parameters."""
TUNED_AT, REPEATS = 1 / 16, 3
DROPOUT = 0.0
"""Of every method's fine-tuning: pruned networks are too small to need it."""
GRID: dict[str, tuple[Any, ...]] = {
    "lr": (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2),
    "criterion": ("l2", "taylor"),
    "distill_weight": (0.2, 0.5, 1.0),
    "batch_size": (32, 64),
    "temperature": (1.0, 2.0, 4.0),
}
"""What is tuned, one after the other, each from what the others are best at so far."""
START = {"lr": 5e-3, "criterion": "l2", "distill_weight": 0.5, "batch_size": 64, "temperature": 4.0}


CHAIN_SIZES = 50
CHAIN_EPOCHS = 2
"""Epochs for each model of a chain, where there are enough for all its sizes."""


def sizes(count: int, *, least: float = SMALLEST) -> list[float]:
    """Return shares of the dense parameters, in geometric steps, descending."""
    return [float(share) for share in np.geomspace(LARGEST, max(SMALLEST, least), count)]


def spread(epochs: int, parts: int) -> list[int]:
    """Split epochs evenly; what is left over goes to the last ones, which are the smallest.

    >>> spread(10, 4)
    [2, 2, 3, 3]
    """
    each, over = divmod(epochs, parts)
    return [each + (number >= parts - over) for number in range(parts)]


def chain_length(epochs: int) -> int:
    return max(min(CHAIN_SIZES, epochs // CHAIN_EPOCHS), 1)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where everything of the benchmark lies, and how much of it is run."""

    root: Path
    epochs: int | None = None
    """Of fine-tuning for each method, instead of the task's own."""
    images: int | None = None
    """Training images, instead of the task's own."""

    def dense(self, task: str, seed: int) -> Path:
        return self.root / "dense" / f"{task}-s{seed}.safetensors"

    def recipe(self, task: str) -> Path:
        return self.root / "recipes" / f"{task}.json"

    def cell(self, task: str, method: str, seed: int) -> Path:
        return self.root / "cells" / task / f"{method}-s{seed}.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """A model, and which of the dense channels it has."""

    model: nn.Module
    kept: Mapping[str, tuple[int, ...]]


class Bench:
    """A task with one seed's dense model."""

    def __init__(self, task: FrontTask, seed: int, work: Work) -> None:
        self.spec = task
        self.seed = seed
        self.work = work
        self.epochs = work.epochs or task.epochs
        self.task = task.data(work.images or task.images)

    # --- the dense model --------------------------------------------------------------------

    def train_dense(self) -> None:
        """Train the dense model and keep it, with its scores."""
        torch.manual_seed(self.seed)
        model = self.spec.model()
        started = time.process_time()
        for _ in finetune(model, self.task, self.spec.dense, seed=self.seed):
            pass
        file = self.dense_file
        save_model(file, model)
        about = {
            "params": size_of(model),
            "valid": self.task.evaluate(model, "valid"),
            "test": self.task.evaluate(model, "test"),
            "cpu": time.process_time() - started,
        }
        write_json(file.with_suffix(".json"), about)

    @property
    def dense_file(self) -> Path:
        return self.work.dense(self.spec.dense_of or self.spec.name, self.seed)

    @cached_property
    def about_dense(self) -> dict[str, Any]:
        about: dict[str, Any] = read_json(self.dense_file.with_suffix(".json"))
        return about

    @property
    def dense_params(self) -> int:
        return int(self.about_dense["params"])

    def dense(self) -> nn.Module:
        """Return a fresh copy of the dense model."""
        model = self.spec.model()
        model.load_state_dict(load_tensors(self.dense_file))
        return model.eval()

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.dense(), self.task)

    # --- our groups, for the methods that cut with them -------------------------------------

    @cached_property
    def grouping(self) -> Grouping:
        return replace(find_groups(self.dense(), self.spec.example), blocks=())

    @cached_property
    def allocator(self) -> Allocator:
        return Allocator(CostModel(self.grouping))

    def whole(self) -> Pruned:
        return Pruned(model=self.dense(), kept=self.grouping.all_kept())

    def widths(self, share: float, shape: Shape) -> dict[str, int]:
        return self.allocator.widths(round(share * self.dense_params), shape)

    def pruned(self, parent: Pruned, widths: Mapping[str, int], criterion: str) -> Pruned:
        """Cut `parent` to `widths` by a criterion on its own weights."""
        grouping = restrict(self.grouping, parent.kept)
        batches = (
            self.batches(samples=256, batch_size=64) if get_criterion(criterion).needs_data else ()
        )
        evidence = collect(
            parent.model,
            grouping,
            batches=batches,
            loss=lambda model, batch: self.task.step(model, batch)[0],
            seed=self.seed,
        )
        scores = score_groups(criterion, evidence, grouping)
        chosen = {name: top_channels(scores[name], widths[name]) for name in grouping.channels}
        model = cut(parent.model, grouping, chosen)
        recalibrate(model, self.batches(samples=512, batch_size=128))
        kept = {n: tuple(parent.kept[n][i] for i in indices) for n, indices in chosen.items()}
        return Pruned(model=model, kept=kept)

    def batches(self, *, samples: int, batch_size: int) -> Iterable[Batch]:
        batches = self.task.batches("train", batch_size=batch_size, seed=self.seed)
        return itertools.islice(batches, samples // batch_size)

    # --- training ---------------------------------------------------------------------------

    def tune(self, model: nn.Module, settings: FineTune, *, number: int) -> float:
        """Fine-tune `model` in place, the `number`-th of its method; return its valid score."""
        valid = 0.0
        seed = self.seed * 1_000 + number
        model.requires_grad_(True)
        for epoch in finetune(model, self.task, settings, teacher=self.teacher, seed=seed):
            valid = epoch.valid
        return valid

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What was tuned for the task; see `tune_recipe`."""
        found: dict[str, Any] = read_json(self.work.recipe(self.spec.name))["recipe"]
        return found

    def settings(self, epochs: int, **changes: Any) -> FineTune:
        """Return the tuned recipe for so many epochs."""
        tuned = {name: value for name, value in self.recipe.items() if name != "criterion"}
        return FineTune(**({"epochs": epochs, "dropout": DROPOUT} | tuned | changes))

    def tune_recipe(self) -> None:
        """Tune the recipe by coordinate descent on validation, and keep it.

        At one size, cut from dense, for as many epochs as a model of a chain gets.
        """
        tried: dict[str, float] = {}

        def mean_score(recipe: Mapping[str, Any]) -> float:
            key = str(recipe)
            if key not in tried:
                tried[key] = sum(self._try(recipe, n) for n in range(REPEATS)) / REPEATS
            return tried[key]

        best = {**START, "optimizer": self.spec.optimizer}
        for name, values in GRID.items():
            best = max(({**best, name: value} for value in values), key=mean_score)
        write_json(self.work.recipe(self.spec.name), {"recipe": best, "valid": tried})

    def _try(self, recipe: Mapping[str, Any], number: int) -> float:
        criterion = recipe["criterion"]
        tuned = {name: value for name, value in recipe.items() if name != "criterion"}
        small = self.pruned(self.whole(), self.widths(TUNED_AT, Shape()), criterion)
        epochs = self.epochs // chain_length(self.epochs)
        settings = FineTune(epochs=epochs, dropout=DROPOUT, **tuned)
        return self.tune(small.model, settings, number=number)
