"""The jobs of a search, as workers run them: train the dense model, evaluate a plan, export one.

Each is a generator that yields progress and is told whether to go on; see `running.executor`.
Jobs read the store and write weights to it, but never to Optuna or MLflow: that is the driver's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.cost import CostModel
from autoprune.pruning.criteria import CRITERIA, get_criterion, score_groups
from autoprune.pruning.cut import check_state, cut, load_state
from autoprune.pruning.evidence import collect, top_channels
from autoprune.pruning.forward import batch_size_of
from autoprune.pruning.groups import Grouping, restrict
from autoprune.pruning.plan import FineTune, Plan, fingerprint
from autoprune.pruning.weights import load_checkpoint, load_tensors, save_model, save_tensors
from autoprune.results.export import ONNX, differs, export_model, export_onnx
from autoprune.results.load import load
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE
from autoprune.study import PruningStudy, StudySource
from autoprune.training.calibrate import recalibrate
from autoprune.training.device import pick_device, use_one_thread
from autoprune.training.distill import Teacher, to_batch
from autoprune.training.finetune import finetune, scored
from autoprune.training.latency import measure, measure_together
from autoprune.training.task import Batch

Job = Generator[dict[str, Any], bool, dict[str, Any] | None]

CALIBRATION_SAMPLES = 256
CALIBRATION_BATCH = 64
RECALIBRATION_SAMPLES = 512
RECALIBRATION_BATCH = 128


class Workbench:
    """What the jobs of one worker share, each part made when it is first needed."""

    def __init__(self, study: PruningStudy, store: Store) -> None:
        self.study = study
        self.store = store
        self.task = study.task
        self.device = pick_device(study.device)

    @cached_property
    def grouping(self) -> Grouping:
        return self.store.load_grouping()

    @cached_property
    def cost(self) -> CostModel:
        return CostModel(self.grouping)

    @cached_property
    def untrained(self) -> nn.Module:
        """The dense model as the study builds it; it gives the code to load weights into."""
        return self.study.build()

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.model(DENSE), self.task)

    def model(self, name: str) -> nn.Module:
        """Return a fresh copy of a finished candidate's model (or the dense one) on the device."""
        state = load_tensors(self.store.weights(name))
        return load_state(self.untrained, state).to(self.device)

    def kept(self, name: str) -> Mapping[str, tuple[int, ...]]:
        """Return which dense channels a finished candidate has."""
        if name == DENSE:
            return self.grouping.all_kept()
        kept = self.store.load_candidate(name).plan.kept
        assert kept is not None, "a finished candidate's plan has its kept channels"
        return kept

    def scores(
        self, name: str, criterion: str, model: nn.Module, grouping: Grouping
    ) -> dict[str, Tensor]:
        """Score a candidate's channels on its own weights; the calibration pass is cached."""
        if not get_criterion(criterion).needs_data:
            evidence = collect(model, grouping, seed=self.study.seed)
            return score_groups(criterion, evidence, grouping)
        file = self.store.scores(name)
        if not file.exists():
            save_tensors(file, self._calibrated_scores(model, grouping))
        cached = load_tensors(file)
        prefix = f"{criterion}/"
        if not any(key.startswith(prefix) for key in cached):  # registered since
            cached = self._calibrated_scores(model, grouping)
            save_tensors(file, cached)
        return {k.removeprefix(prefix): v for k, v in cached.items() if k.startswith(prefix)}

    def _calibrated_scores(self, model: nn.Module, grouping: Grouping) -> dict[str, Tensor]:
        evidence = collect(
            model,
            grouping,
            batches=self.training_batches(
                samples=CALIBRATION_SAMPLES, batch_size=CALIBRATION_BATCH
            ),
            loss=lambda m, b: self.task.step(m, b)[0],
            seed=self.study.seed,
        )
        return {
            f"{name}/{group}": score
            for name, criterion in CRITERIA.items()
            if criterion.needs_data
            for group, score in score_groups(name, evidence, grouping).items()
        }

    def training_batches(self, *, samples: int, batch_size: int) -> Iterator[Batch]:
        """Yield the same few training batches every time."""
        batches = self.task.batches("train", batch_size=batch_size, seed=self.study.seed)
        seen = 0
        for batch in batches:
            yield to_batch(batch, self.device)
            seen += batch_size_of(batch.inputs)  # a loader keeps its own batch size
            if seen >= samples:
                return


def open_workbench(spec: Mapping[str, Any]) -> Workbench:
    """Open a worker's workbench from what the driver sent."""
    if spec["own_process"]:
        use_one_thread()
    source = dict(spec["source"])
    if source["criteria"] is not None:
        source["criteria"] = tuple(source["criteria"])
    return Workbench(StudySource(**source).load(), Store(spec["out"]))


# --- the dense model ----------------------------------------------------------------------------


def prepare_dense(bench: Workbench, *, latency: Mapping[str, Any] | None = None) -> Job:
    """Get the dense model's weights, score it, and profile its groups.

    `latency` says how its latency is measured, if it is; see `evaluate`. Returns its score and, by
    group, the sensitivity: the log of the mean Fisher score of a channel.
    """
    started = time.perf_counter()
    study = bench.study
    model = dense_model(study).to(bench.device)
    if study.train is not None:
        for epoch in finetune(model, study.task, study.train, seed=study.seed):
            yield {"epoch": epoch.epoch, "epochs": study.train.epochs, "valid": epoch.valid}
    settings = study.train or FineTune(epochs=0, lr=0.0)
    valid = scored(study.task, model, settings.epochs, settings)
    measured = _latency(bench, model, latency)
    save_model(bench.store.weights(DENSE), model)
    bench.store.scores(DENSE).unlink(missing_ok=True)  # of a run that did not get further
    scores = bench.scores(DENSE, "fisher", model, bench.grouping)
    return {
        "valid": valid,
        "params": bench.cost.params(bench.grouping.channels),
        "macs": bench.cost.macs(bench.grouping.channels),
        "size_bytes": bench.store.weights(DENSE).stat().st_size,
        **measured,
        "sensitivity": {n: math.log(float(s.mean()) + 1e-12) for n, s in scores.items()},
        "seconds": time.perf_counter() - started,
    }


def dense_model(study: PruningStudy) -> nn.Module:
    """Build the study's dense model, with its checkpoint's weights if it has one.

    Raises
    ------
    AutopruneError
        If the checkpoint is missing, unsafe to read, or of another model.
    """
    model = study.build()
    if study.checkpoint is not None:
        state = load_checkpoint(Path(study.checkpoint))
        check_state(model, state, what="checkpoint", exactly=True)
        model.load_state_dict(state)
    return model


# --- a candidate --------------------------------------------------------------------------------


def evaluate(
    bench: Workbench,
    *,
    name: str,
    plan: dict[str, Any],
    parent: str,
    seed: int,
    latency: Mapping[str, Any] | None = None,
) -> Job:
    """Cut a plan from its parent's weights, fine-tune it with distillation, score each epoch.

    Yields the score after the cut (epoch 0) and after every epoch. Told to stop, it saves nothing
    and returns None; else the weights are in the store when it returns. `latency` holds the engine
    and the batch size by which the cut model's latency is measured; without it, none is.
    """
    clock = _Clock()
    wanted = Plan.from_json(plan)
    with clock("load"):
        source = bench.model(parent)
        parent_kept = bench.kept(parent)
        grouping = restrict(bench.grouping, parent_kept)
    smaller = any(wanted.widths[n] < len(k) for n, k in parent_kept.items())
    with clock("score"):
        scores = bench.scores(parent, wanted.criterion, source, grouping) if smaller else {}
    with clock("cut"):
        chosen = {
            name: top_channels(scores[name], width) if smaller else tuple(range(width))
            for name, width in wanted.widths.items()
        }
        model = cut(source, grouping, chosen)
        kept = {n: tuple(parent_kept[n][i] for i in chosen[n]) for n in wanted.widths}
    with clock("calibrate"):
        if smaller:
            recalibrate(
                model,
                bench.training_batches(
                    samples=RECALIBRATION_SAMPLES, batch_size=RECALIBRATION_BATCH
                ),
            )
    with clock("evaluate"):
        valid = scored(bench.task, model, 0, wanted.finetune)
    with clock("measure"):
        measured = _latency(bench, model, latency)
    if not (yield {"epoch": 0, "valid": valid, **measured}):
        return None
    with clock("train"):
        teacher = bench.teacher
        for epoch in finetune(model, bench.task, wanted.finetune, teacher=teacher, seed=seed):
            valid = epoch.valid
            if not (yield {"epoch": epoch.epoch, "valid": valid, "loss": epoch.loss}):
                return None
    with clock("save"):
        save_model(bench.store.weights(name), model)
    return {
        "valid": valid,
        "params": sum(p.numel() for p in model.parameters()),
        "macs": bench.cost.macs(wanted.widths),
        "size_bytes": bench.store.weights(name).stat().st_size,
        "plan": wanted.with_kept(kept).to_json(),
        "seconds": clock.seconds,
    }


def _latency(bench: Workbench, model: nn.Module, how: Mapping[str, Any] | None) -> dict[str, float]:
    """Return a model's latency as a score holds it; nothing if it is not to be measured."""
    if how is None:
        return {}
    found = measure(model, bench.study.example, **how)
    return {"latency": found.seconds, "latency_spread": found.spread}


class _Clock:
    """Sums the seconds spent in named parts of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[part] = self.seconds.get(part, 0.0) + spent


# --- the end ------------------------------------------------------------------------------------


def test_score(bench: Workbench, *, name: str) -> Job:
    """Score a model on the test split."""
    yield {}
    return {"test": _tested(bench, bench.model(name))}


def export(bench: Workbench, *, name: str, weights: str, folder: str) -> Job:
    """Score a front model on the test split and write it in every format.

    `name` is the candidate whose plan is exported, `weights` the one whose weights are: itself,
    or its final stage.
    """
    yield {}
    candidate = bench.store.load_candidate(name)
    model = bench.model(weights)
    test = _tested(bench, model)
    exported = export_model(
        model,
        Path(folder),
        example=bench.study.example,
        plan=bench.store.load_candidate(weights).plan,
        about={
            "study": bench.study.name,
            "name": name,
            "trial": candidate.trial,
            "dense": fingerprint(bench.grouping),
        },
    )
    return {"test": test, "formats": exported.formats, "problems": exported.problems}


def latencies(
    bench: Workbench,
    *,
    models: Mapping[str, Mapping[str, str]],
    engine: str,
    batch_size: int,
) -> Job:
    """Measure the dense model and exported ones in turns: nothing else of the search runs now.

    `models` holds, by name, whose `weights` it has and the `folder` it was exported to. Each is
    measured eagerly, by `engine`, and its ONNX file, if there is one, in ONNX Runtime. Returns by
    name what was measured, and why the rest was not.
    """
    yield {}
    found: dict[str, list[dict[str, Any]]] = {DENSE: [], **{name: [] for name in models}}
    problems: list[str] = []
    for each in dict.fromkeys(("eager", engine, "onnx")):
        try:
            measured = measure_together(
                _timed_models(bench, models, each),
                bench.study.example,
                engine=each,
                batch_size=batch_size,
            )
        except Exception as error:  # a latency that cannot be had costs nobody the models
            problems.append(str(error) if isinstance(error, AutopruneError) else first_line(error))
            continue
        for name, latency in measured.items():
            found[name].append(asdict(latency))
    return {"latencies": found, "problems": problems}


def _timed_models(
    bench: Workbench, models: Mapping[str, Mapping[str, str]], engine: str
) -> dict[str, nn.Module | Path]:
    if engine != "onnx":
        weights = {DENSE: DENSE, **{name: order["weights"] for name, order in models.items()}}
        return {name: bench.model(source) for name, source in weights.items()}
    exported = {name: Path(order["folder"]) / ONNX for name, order in models.items()}
    files = {name: file for name, file in exported.items() if file.exists()}
    if not files:
        return {}
    dense = bench.store.dense / ONNX
    if not dense.exists():
        export_onnx(bench.model(DENSE), dense, example=bench.study.example)
    return {DENSE: dense, **files}


def reload_check(bench: Workbench, *, folder: str) -> Job:
    """Rebuild an exported model in its own class and compare it with the reference."""
    yield {}
    fault = differs(load(folder, model=bench.study.build()), Path(folder))
    return {"faults": [] if fault is None else [fault]}


def _tested(bench: Workbench, model: nn.Module) -> float | None:
    """Return the test score; None for a task that has no test data."""
    if not getattr(bench.task, "has_test", True):
        return None
    return float(bench.task.evaluate(model.to(bench.device).eval(), "test"))
