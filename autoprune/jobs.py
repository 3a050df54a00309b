"""The jobs of a search, as workers run them: train the dense model, evaluate a plan, export one.

Each is a generator that yields progress and is told whether to go on; see `running.executor`.
Jobs read the store and write weights to it, but never to Optuna or MLflow: that is the driver's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.errors import AutopruneError, first_line
from autoprune.evaluation import evaluate as evaluate
from autoprune.evaluation import measured_latency
from autoprune.groupwise import FRACTIONS as FRACTIONS
from autoprune.groupwise import block_losses
from autoprune.groupwise import sensitivity as sensitivity
from autoprune.pruning.cut import check_state
from autoprune.pruning.plan import FineTune, fingerprint
from autoprune.pruning.weights import load_checkpoint, save_model
from autoprune.results.export import ONNX, differs, export_model, export_onnx
from autoprune.results.load import load
from autoprune.searching.candidate import DENSE
from autoprune.study import PruningStudy
from autoprune.training.checkpoint import Keeper
from autoprune.training.finetune import check_finite, finetune
from autoprune.training.latency import measure_together
from autoprune.training.yardstick import score_and_yardstick
from autoprune.workbench import CALIBRATION_SAMPLES, Job
from autoprune.workbench import Workbench as Workbench
from autoprune.workbench import open_workbench as open_workbench

# --- the dense model ----------------------------------------------------------------------------


def prepare_dense(bench: Workbench, *, latency: Mapping[str, Any] | None = None) -> Job:
    """Get the dense model's weights, score it, and profile its groups.

    `latency` says how its latency is measured, if it is; see `evaluate`. Returns its score, what
    that is to be measured against, how many samples channels are scored on and, by group, the
    sensitivity (the log of the mean Fisher score of a channel) and the LAMP scores of its channels;
    and how much the loss rises without each block that may be dropped.
    """
    started = time.perf_counter()
    study = bench.study
    model = dense_model(study).to(bench.device)
    if study.train is not None:
        keeper = Keeper(file=bench.store.checkpoint(DENSE))
        saved = keeper.load()
        for epoch in finetune(
            model,
            study.task,
            study.train,
            seed=study.seed,
            start=None if saved is None else saved.training,
            keep=lambda state: keeper.offer(state, dict),
        ):
            yield {"epoch": epoch.epoch, "epochs": study.train.epochs, "valid": epoch.valid}
    settings = study.train or FineTune(epochs=0, lr=0.0)
    valid, yardstick = score_and_yardstick(study.task, model, "valid")
    check_finite(valid, study.task.metric, settings.epochs, settings)
    measured = measured_latency(bench, model, latency)
    digest = save_model(bench.store.weights(DENSE), model)
    bench.store.scores(DENSE).unlink(missing_ok=True)  # of a run that did not get further
    bench.store.drop_checkpoint(DENSE)
    lamp: Mapping[str, Tensor] = {}
    if bench.grouping.weights:
        fisher: Mapping[str, Tensor] = bench.weight_scores("fisher", model)
    else:
        fisher = bench.scores("fisher", model, bench.grouping, name=DENSE).groups
        lamp = bench.scores("lamp", model, bench.grouping, name=DENSE).groups
    return {
        "valid": valid,
        "params": bench.cost.params(bench.grouping.channels),
        "macs": bench.cost.macs(bench.grouping.channels),
        "size_bytes": bench.store.weights(DENSE).stat().st_size,
        "sha256": digest,
        "memory": bench.cost.memory(bench.grouping.channels),
        **measured,
        "yardstick": asdict(yardstick),
        "calibration_samples": bench.calibration_samples,
        "calibration_asked": CALIBRATION_SAMPLES,
        "sensitivity": {n: math.log(float(s.mean()) + 1e-12) for n, s in fisher.items()},
        "lamp": {n: s.tolist() for n, s in lamp.items()},
        "blocks": block_losses(bench, model),
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


# --- the end ------------------------------------------------------------------------------------


def test_score(bench: Workbench, *, name: str) -> Job:
    """Score a model on the test split."""
    yield {}
    return {"test": _tested(bench, bench.model(name))}


def export(bench: Workbench, *, name: str, weights: str, folder: str, programs: bool = True) -> Job:
    """Score a front model on the test split and write it in every format.

    `name` is the candidate whose plan is exported, `weights` the one whose weights are: itself,
    or its final stage. `folder` is relative to the store's. Without `programs` there are its
    weights and its plan alone.
    """
    yield {}
    candidate = bench.store.load_candidate(name)
    model = bench.model(weights)
    test = _tested(bench, model)
    exported = export_model(
        model,
        bench.store.root / folder,
        example=bench.study.example,
        plan=bench.store.load_candidate(weights).plan,
        about={
            "study": bench.study.name,
            "name": name,
            "trial": candidate.trial,
            "dense": fingerprint(bench.grouping),
        },
        zeroed=tuple(bench.grouping.weights.values()),
        programs=programs,
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
    exported = {name: bench.store.root / order["folder"] / ONNX for name, order in models.items()}
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
    exported = bench.store.root / folder
    fault = differs(load(exported, model=bench.study.build()), exported)
    return {"faults": [] if fault is None else [fault]}


def _tested(bench: Workbench, model: nn.Module) -> float | None:
    """Return the test score; None for a task without test data, or where it is no finite number."""
    if not getattr(bench.task, "has_test", True):
        return None
    score = float(bench.task.evaluate(model.to(bench.device).eval(), "test"))
    return score if math.isfinite(score) else None
