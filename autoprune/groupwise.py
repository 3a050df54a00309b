"""Which groups hurt: each cut alone, to several widths, and judged without any training."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from autoprune.evaluation import Clock, Source, pruned
from autoprune.pruning.forward import batch_size_of
from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import DENSE
from autoprune.training.device import OwnRandomState, autocast
from autoprune.workbench import CALIBRATION_BATCH, CALIBRATION_SAMPLES, Job, Workbench

FRACTIONS = (0.75, 0.5, 0.25, 0.125)
"""Shares of a group's channels that are left."""
WITHOUT_SCORES = "l2"
"""The criterion of plans that cut no channel."""


def sensitivity(
    bench: Workbench,
    *,
    criterion: str,
    fractions: Sequence[float] = FRACTIONS,
    within: float | None = None,
) -> Job:
    """Cut each group of the dense model alone, recalibrate BatchNorm, and judge what is left.

    Yields after each group how many are done. Returns the dense model's loss and score and, by
    group, for each fraction of its channels that stays, those of the model that is cut to that; a
    block is there or not. The loss is the task's, over calibration samples of the training split;
    the score is that on validation. If the first group says that all will take longer than
    `within` seconds, there are no groups in what is returned.
    """
    started = time.perf_counter()
    own = OwnRandomState()  # what comes after must not depend on whether this was asked for
    grouping = bench.grouping
    source = Source(
        model=bench.model(DENSE),
        widths=grouping.channels,
        kept=bench.kept(DENSE),
        name=DENSE,
    )
    count = len(grouping.channels)
    rows: list[dict[str, Any]] = []
    for name, channels in grouping.channels.items():
        with own:
            rows.append(
                {
                    "name": name,
                    "channels": channels,
                    "cells": [
                        {"fraction": f, "width": w, **_judged(bench, model)}
                        for f, w, model in _cut_alone(bench, source, name, criterion, fractions)
                    ],
                }
            )
        yield {"done": len(rows), "total": count}
        spent = time.perf_counter() - started
        if within is not None and spent / len(rows) * count > within:
            rows = []
            break
    with own:
        dense = _judged(bench, source.model)
    return {
        "criterion": criterion,
        "fractions": list(fractions),
        "samples": bench.calibration_samples,
        "dense": dense,
        "groups": rows,
        "seconds": time.perf_counter() - started,
    }


def block_losses(bench: Workbench, model: nn.Module) -> dict[str, float]:
    """Return, for each block that may be dropped, by how much the loss rises without it.

    It is dropped from the dense model alone, BatchNorm is recalibrated, nothing is trained. The
    loss is the task's, over calibration samples.
    """
    grouping = bench.grouping
    if not grouping.blocks:
        return {}
    source = Source(model=model, widths=grouping.channels, kept=grouping.all_kept(), name=DENSE)
    with OwnRandomState():  # as above
        whole = _loss(bench, model)
        losses = {
            block: _loss(bench, without)
            for block in grouping.blocks
            for *_, without in _cut_alone(bench, source, block, WITHOUT_SCORES, ())
        }
    # Nothing is worse than a loss that is no number, and JSON has no word for infinity.
    worst = sys.float_info.max
    return {b: loss - whole if math.isfinite(loss) else worst for b, loss in losses.items()}


def _cut_alone(
    bench: Workbench, source: Source, name: str, criterion: str, fractions: Sequence[float]
) -> Iterator[tuple[float, int, nn.Module]]:
    """Yield, for each share that is left of a group, its width and the model cut to that."""
    grouping = bench.grouping
    block = name in grouping.blocks
    for fraction in (0.0,) if block else fractions:
        width = 0 if block else max(round(fraction * grouping.channels[name]), 1)
        widths = {**grouping.channels, name: width}
        plan = Plan(
            widths=widths,
            criterion=criterion,
            finetune=FineTune(epochs=0, lr=0.0),
            granularity=bench.study.space.granularity,
        )
        yield fraction, width, pruned(bench, plan, source, widths, Clock()).model


def _judged(bench: Workbench, model: nn.Module) -> dict[str, float]:
    """Return a model's loss on calibration samples, and its score on validation."""
    loss = _loss(bench, model)
    return {"loss": loss, "score": float(bench.task.evaluate(model, "valid"))}


def _loss(bench: Workbench, model: nn.Module) -> float:
    """Return a model's loss on calibration samples."""
    model.eval()
    total, seen = 0.0, 0
    with torch.no_grad(), autocast(bench.device):
        for batch in bench.training_batches(
            samples=CALIBRATION_SAMPLES, batch_size=CALIBRATION_BATCH
        ):
            size = batch_size_of(batch.inputs)
            total += size * float(bench.task.step(model, batch)[0])
            seen += size
    return total / max(seen, 1)
