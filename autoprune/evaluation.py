"""Evaluating a plan, stage by stage: load, then score, cut, mend and train until it is reached."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autoprune.pruning.compensate import compensated
from autoprune.pruning.criteria import get_criterion
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import top_channels
from autoprune.pruning.groups import restrict
from autoprune.pruning.masks import count_nonzero, masked, masks_of
from autoprune.pruning.plan import FineTune, Plan
from autoprune.pruning.reconstruct import reconstructed
from autoprune.pruning.steps import steps_of
from autoprune.pruning.weights import save_model
from autoprune.sparsified import sparsified
from autoprune.training.calibrate import recalibrate
from autoprune.training.finetune import Epoch, finetune, scored
from autoprune.training.latency import measure
from autoprune.training.regularise import StayingZero
from autoprune.workbench import Job, Workbench

RECALIBRATION_SAMPLES = 512
RECALIBRATION_BATCH = 128
STEP_SEED = 1_000_000_000
"""What an earlier step's training adds to the seed."""


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

    Yields the score after the cut to the plan's widths (epoch 0) and after every epoch. A plan of
    several steps yields the epochs before that, too, with their `step`: their scores are of wider
    models; and so does one with a sparsifier (see `sparsified`). Told to stop, it saves nothing
    and returns None; else the weights are in the store when it returns. `latency` holds the engine
    and the batch size by which the cut model's latency is measured; without it, none is.
    """
    clock = _Clock()
    wanted = Plan.from_json(plan)
    with clock("load"):
        source = _Source(
            model=bench.model(parent),
            widths=bench.widths(parent),
            kept=bench.kept(parent),
            name=parent,
        )
    if wanted.sparsify is not None and wanted.widths != source.widths:
        with clock("sparsify"):
            sparse = yield from sparsified(bench, wanted, source.model, parent=parent)
        if sparse is None:
            return None
        source = replace(source, model=sparse[0], name=sparse[1])
        with clock("calibrate"):  # the weights moved faster than BatchNorm's averages
            recalibrate(source.model, _batches(bench))
    *earlier, last = steps_of(wanted, source.widths)
    for number, step in enumerate(earlier, 1):
        source = _pruned(bench, wanted, source, step.widths, clock)
        tuning = replace(wanted.finetune, epochs=step.epochs)
        with clock("train"):
            for epoch in _trained(bench, source.model, tuning, seed=seed + STEP_SEED * number):
                if not (yield {"step": number, "epoch": epoch.epoch, "valid": epoch.valid}):
                    return None
    reached = _pruned(bench, wanted, source, last.widths, clock)
    model, tuning = reached.model, replace(wanted.finetune, epochs=last.epochs)
    with clock("evaluate"):
        valid = scored(bench.task, model, 0, tuning)
    with clock("measure"):
        measured = measured_latency(bench, model, latency)
    if not (yield {"epoch": 0, "valid": valid, **measured}):
        return None
    with clock("train"):
        for epoch in _trained(bench, model, tuning, seed=seed):
            valid = epoch.valid
            if not (yield {"epoch": epoch.epoch, "valid": valid, "loss": epoch.loss}):
                return None
    with clock("save"):
        save_model(bench.store.weights(name), model)
    return {
        "valid": valid,
        "params": count_nonzero(model, bench.grouping.weights.values()),
        "macs": bench.cost.macs(wanted.widths),
        "size_bytes": bench.store.weights(name).stat().st_size,
        "plan": replace(wanted, kept=reached.kept).to_json(),
        "seconds": clock.seconds,
    }


def measured_latency(
    bench: Workbench, model: nn.Module, how: Mapping[str, Any] | None
) -> dict[str, float]:
    """Return a model's latency as a score holds it; nothing if it is not to be measured."""
    if how is None:
        return {}
    found = measure(model, bench.study.example, **how)
    return {"latency": found.seconds, "latency_spread": found.spread}


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model on its way to the plan's widths."""

    model: nn.Module
    widths: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]] | None
    """Which of the dense channels it has; None where single weights are pruned."""
    name: str | None
    """Whose weights these are: a finished candidate's, or the sparsified ones in the store; None
    once they are no one's."""


def _pruned(
    bench: Workbench, plan: Plan, source: _Source, widths: Mapping[str, int], clock: _Clock
) -> _Source:
    """Score the source's channels, cut it to `widths`, and mend what can be without training."""
    if widths == source.widths:
        return source
    if source.kept is None:
        return _masked(bench, plan, source, widths, clock)
    grouping = restrict(bench.grouping, source.kept)
    with clock("score"):
        scores = bench.scores(plan.criterion, source.model, grouping, name=source.name)
    with clock("cut"):
        chosen = {
            name: tuple(range(widths[name]))
            if name in grouping.blocks
            else top_channels(scores.groups[name], widths[name])
            for name in grouping.channels
        }
        whole = source.model
        if get_criterion(plan.criterion).compensates:
            whole = compensated(whole, grouping, chosen, scores.input_means)
        model = cut(whole, grouping, chosen)
    if plan.reconstruct:
        with clock("reconstruct"):
            inputs = [batch.inputs for batch in _batches(bench)]
            model = reconstructed(source.model, model, grouping, chosen, inputs)
    with clock("calibrate"):
        recalibrate(model, _batches(bench))
    # A block that the source lacks is not among what was chosen from.
    kept = {n: tuple(source.kept[n][i] for i in chosen.get(n, ())) for n in widths}
    return _Source(model=model, widths=dict(widths), kept=kept, name=None)


def _masked(
    bench: Workbench, plan: Plan, source: _Source, widths: Mapping[str, int], clock: _Clock
) -> _Source:
    """Score the source's single weights, and set to zero what goes."""
    with clock("score"):
        scores = bench.weight_scores(plan.criterion, source.model)
    with clock("cut"):
        model = masked(source.model, bench.grouping, scores, widths, plan.granularity)
    with clock("calibrate"):
        recalibrate(model, _batches(bench))
    return _Source(model=model, widths=dict(widths), kept=None, name=None)


def _trained(
    bench: Workbench, model: nn.Module, settings: FineTune, *, seed: int
) -> Iterator[Epoch]:
    """Fine-tune; single weights that were pruned stay zero."""
    zeros = masks_of(model, bench.grouping)
    return finetune(
        model,
        bench.task,
        settings,
        teacher=bench.teacher,
        seed=seed,
        regulariser=StayingZero(model, zeros) if zeros else None,
    )


def _batches(bench: Workbench) -> Iterator[Any]:
    return bench.training_batches(samples=RECALIBRATION_SAMPLES, batch_size=RECALIBRATION_BATCH)


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
