"""The jobs of a search, as workers run them: train the dense model, evaluate a plan, export one.

Each is a generator that yields progress and is told whether to go on; see `running.executor`.
Jobs read the store and write weights to it, but never to Optuna or MLflow: that is the driver's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from autoprune.evaluation import evaluate as evaluate
from autoprune.pruning.cut import check_state
from autoprune.pruning.plan import FineTune, fingerprint
from autoprune.pruning.weights import load_checkpoint, save_model
from autoprune.results.export import differs, export_model
from autoprune.results.load import load
from autoprune.searching.candidate import DENSE
from autoprune.study import PruningStudy
from autoprune.training.finetune import finetune, scored
from autoprune.workbench import Job
from autoprune.workbench import Workbench as Workbench
from autoprune.workbench import open_workbench as open_workbench

# --- the dense model ----------------------------------------------------------------------------


def prepare_dense(bench: Workbench) -> Job:
    """Get the dense model's weights, score it, and profile its groups.

    Returns its score and, by group, the sensitivity (the log of the mean Fisher score of a channel)
    and the LAMP scores of its channels.
    """
    started = time.perf_counter()
    study = bench.study
    model = dense_model(study).to(bench.device)
    if study.train is not None:
        for epoch in finetune(model, study.task, study.train, seed=study.seed):
            yield {"epoch": epoch.epoch, "epochs": study.train.epochs, "valid": epoch.valid}
    settings = study.train or FineTune(epochs=0, lr=0.0)
    valid = scored(study.task, model, settings.epochs, settings)
    save_model(bench.store.weights(DENSE), model)
    bench.store.scores(DENSE).unlink(missing_ok=True)  # of a run that did not get further
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
        "sensitivity": {n: math.log(float(s.mean()) + 1e-12) for n, s in fisher.items()},
        "lamp": {n: s.tolist() for n, s in lamp.items()},
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
        zeroed=tuple(bench.grouping.weights.values()),
    )
    return {"test": test, "formats": exported.formats, "problems": exported.problems}


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
