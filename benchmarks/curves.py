"""Full learning curves of searches that stopped nothing: what a stopping rule is judged on.

    python benchmarks/curves.py [--only NAME]

Runs small searches with ``early_stop=False``, up to the end of the last trial, and keeps what every
trial went through in ``benchmarks/cache/curves/<task>-<sampler>-<seed>.json``: its size, where its
weights came from, and its validation score after every epoch. What is there already is not run
again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sklearn.datasets import make_friedman1
from torch import nn

import autoprune
from autoprune import FineTune, PruningStudy, Space, SupervisedTask
from autoprune.progress import SilentReporter, Status
from autoprune.study import load_study

CACHE = Path(__file__).parent / "cache" / "curves"
FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Debian's package dataset-fashion-mnist."""
BUDGET = 40


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial that was trained to its end went through."""

    number: int
    params: int
    epochs: int
    """Epochs of its schedule."""
    parent: str
    curve: tuple[float, ...]
    """Validation score after the cut, then after each epoch."""
    widths: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A search that stopped nothing."""

    task: str
    sampler: str
    seed: int
    higher_is_better: bool
    dense_params: int
    dense_valid: float
    valid_samples: int
    cpu_seconds: float
    trials: tuple[Trial, ...]
    """In the order in which they ended."""


# --- tasks --------------------------------------------------------------------------------------


def digits() -> PruningStudy:
    return load_study("digits")


class PlainNet(nn.Module):
    """Four convolutions in a row for 14x14 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 16, 2), (16, 32, 1), (32, 48, 2), (48, 64, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def _mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fashion_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first images of Fashion-MNIST's training part, 14x14 in [0, 1], and labels."""
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    images = raw.reshape(count, 1, 14, 2, 14, 2).mean((3, 5)).astype(np.float32) / 255
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def fashion() -> PruningStudy:
    images, labels = fashion_images(3_000)
    return PruningStudy(
        name="fashion",
        model=PlainNet,
        example=torch.zeros(2, 1, 14, 14),
        task=SupervisedTask(
            train=(images[:2_000], labels[:2_000]), valid=(images[2_000:], labels[2_000:])
        ),
        train=FineTune(epochs=15, lr=3e-3),
        space=Space(lr=(1e-3, 1e-2), batch_size=(32, 64)),
    )


def fashion_mlp() -> PruningStudy:
    images, labels = fashion_images(3_000)
    flat = images.flatten(1)
    return PruningStudy(
        name="fashion-mlp",
        model=lambda: _mlp(196, 128, 64, 32, 10),
        example=torch.zeros(2, 196),
        task=SupervisedTask(
            train=(flat[:2_000], labels[:2_000]), valid=(flat[2_000:], labels[2_000:])
        ),
        train=FineTune(epochs=15, lr=3e-3),
        space=Space(lr=(5e-4, 2e-2)),
    )


def friedman() -> PruningStudy:
    x, y = make_friedman1(3_000, n_features=20, noise=1.0, random_state=0)
    inputs, targets = x.astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)
    return PruningStudy(
        name="friedman",
        model=lambda: _mlp(20, 96, 64, 32, 1),
        example=torch.zeros(2, 20),
        task=SupervisedTask(
            train=(inputs[:2_000], targets[:2_000]),
            valid=(inputs[2_000:], targets[2_000:]),
            loss="mse",
            scorer="neg_mean_absolute_error",
        ),
        train=FineTune(epochs=30, lr=3e-3),
        space=Space(lr=(1e-3, 2e-2)),
    )


TASKS: dict[str, tuple[Callable[[], PruningStudy], int | tuple[int, int]]] = {
    "digits": (digits, 16),
    "fashion": (fashion, 12),
    "fashion-mlp": (fashion_mlp, 16),
    "friedman": (friedman, 16),
    "fashion-mlp, 2 to 24 epochs": (fashion_mlp, (2, 24)),
    "fashion-mlp, 1 to 8 epochs": (fashion_mlp, (1, 8)),
}
"""Studies by name, and the epochs of a trial."""
ALL = ("random", "tpe", "nsga2", "pruning")
DESIGN = (
    ("digits", ("random", "tpe", "pruning"), 0),
    ("digits", ("nsga2",), 1),
    ("fashion", ("random", "tpe", "pruning"), 0),
    ("fashion", ("nsga2",), 1),
    ("fashion-mlp", ALL, 0),
    ("fashion-mlp", ("pruning",), 1),
    ("fashion-mlp", ALL, 2),
    ("fashion-mlp", ("random", "tpe", "nsga2"), 3),
    ("friedman", ALL, 0),
    ("fashion-mlp, 2 to 24 epochs", ("tpe", "pruning"), 0),
    ("fashion-mlp, 2 to 24 epochs", ("random", "tpe"), 1),
    ("fashion-mlp, 1 to 8 epochs", ("pruning",), 0),
    ("fashion-mlp, 1 to 8 epochs", ("pruning",), 1),
)
"""Tasks, samplers and seeds that the rule was set on."""
REPORT = (
    ("digits", ("pruning",), 1),
    ("digits", ("tpe",), 2),
    ("digits", ("random",), 3),
    ("fashion", ("pruning",), 1),
    ("fashion", ("tpe", "nsga2"), 2),
    ("fashion", ("tpe",), 3),
    ("fashion-mlp", ALL, 4),
    ("fashion-mlp", ALL, 5),
    ("friedman", ALL, 1),
    ("friedman", ALL, 2),
    ("fashion-mlp, 2 to 24 epochs", ("nsga2", "pruning"), 2),
    ("fashion-mlp, 2 to 24 epochs", ("random", "nsga2"), 3),
    ("fashion-mlp, 1 to 8 epochs", ("pruning",), 2),
    ("fashion-mlp, 1 to 8 epochs", ("pruning",), 3),
)
"""Tasks, samplers and seeds that it is judged on."""
LATER = (
    ("fashion-mlp", ALL, 6),
    ("friedman", ALL, 3),
    ("fashion-mlp, 2 to 24 epochs", ALL, 4),
)
"""Those that were run after the rule was set."""


# --- collecting ---------------------------------------------------------------------------------


class _AllEndedError(Exception):
    """The last trial has been told: front and export are not needed."""


class _UntilSearched(SilentReporter):
    def __init__(self) -> None:
        self.status = Status(stage="")

    def update(self, status: Status) -> None:
        if status.stage != "search":
            return
        self.status = status
        if status.done == status.total and not status.running:
            raise _AllEndedError


def searched(study: PruningStudy, folder: Path, **settings: Any) -> Status:
    """Search up to the end of the last trial; return where the search stood then."""
    reporter = _UntilSearched()
    try:
        autoprune.search(
            study, out=folder, workers=0, tracking_uri="none", reporter=reporter, **settings
        )
    except _AllEndedError:
        return reporter.status
    raise AssertionError("a search reports its last trial")


def study_of(task: str, seed: int) -> PruningStudy:
    make, epochs = TASKS[task]
    study = make()
    space = replace(study.space, epochs=epochs)
    return replace(study, seed=seed, device="cpu", space=space, final_epochs=0)


def collect(task: str, sampler: str, seed: int, *, budget: int = BUDGET) -> Run:
    """Run one search and return what its trials went through."""
    study, began = study_of(task, seed), time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        status = searched(study, folder, sampler=sampler, budget=budget, early_stop=False)
        trials = _trials(study.name, folder)
    assert status.dense_valid is not None
    valid = study.task.batches("valid", batch_size=1024, seed=None)
    return Run(
        task=task,
        sampler=sampler,
        seed=seed,
        higher_is_better=study.task.higher_is_better,
        dense_params=status.dense_params,
        dense_valid=status.dense_valid,
        valid_samples=sum(len(b.targets) for b in valid),
        cpu_seconds=time.process_time() - began,
        trials=tuple(trials),
    )


def trials_in(name: str, folder: Path) -> list[FrozenTrial]:
    """Return the trials that a search's journal holds."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def _trials(name: str, folder: Path) -> Sequence[Trial]:
    ended = [t for t in trials_in(name, folder) if t.state == TrialState.COMPLETE]
    found = []
    for t in sorted(ended, key=lambda t: t.datetime_complete):  # type: ignore[arg-type, return-value]
        about = folder / "candidates" / f"t{t.number:03d}" / "candidate.json"
        plan: dict[str, Any] = json.loads(about.read_text())["plan"]
        found.append(
            Trial(
                number=t.number,
                params=t.user_attrs["params"],
                epochs=plan["finetune"]["epochs"],
                parent=t.user_attrs["parent"],
                curve=tuple(t.user_attrs["curve"]),
                widths=plan["widths"],
            )
        )
    return found


def run_of(task: str, sampler: str, seed: int) -> Run:
    """Return a run from the cache, collecting it first if need be."""
    file = CACHE / f"{task.replace(' ', '_').replace(',', '')}-{sampler}-{seed}.json"
    if not file.exists():
        run = collect(task, sampler, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(run)))
        print(f"{file.stem}: {run.cpu_seconds:.0f} CPU-seconds", flush=True)
    value = json.loads(file.read_text())
    trials = [Trial(**{**t, "curve": tuple(t["curve"])}) for t in value.pop("trials")]
    return Run(**value, trials=tuple(trials))


def runs_of(split: Sequence[tuple[str, Sequence[str], int]], *, only: str = "") -> list[Run]:
    """Return every run of a split."""
    return [
        run_of(task, sampler, seed)
        for task, samplers, seed in split
        for sampler in samplers
        if only in f"{task}-{sampler}-{seed}"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="runs whose <task>-<sampler>-<seed> has this")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    began = time.perf_counter()
    runs = runs_of((*DESIGN, *REPORT, *LATER), only=only)
    total = sum(run.cpu_seconds for run in runs)
    print(f"{len(runs)} runs, {total:.0f} CPU-seconds; {time.perf_counter() - began:.0f} s now")


if __name__ == "__main__":
    main()
