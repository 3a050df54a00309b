"""Which groups hurt: each cut alone, to several widths, and judged without any training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autoprune.evaluation import Clock, Source, pruned
from autoprune.pruning.forward import batch_size_of
from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import DENSE
from autoprune.training.device import autocast
from autoprune.workbench import CALIBRATION_BATCH, CALIBRATION_SAMPLES, Job, Workbench


def sensitivity(
    bench: Workbench, *, criterion: str, fractions: Sequence[float], score: bool
) -> Job:
    """Cut each group of the dense model alone, recalibrate BatchNorm, and judge what is left.

    Yields after each group how many are done. Returns the dense model's loss (and score), and by
    group, for each fraction of its channels that stays, the same of the model that is cut to that;
    a block is there or not. The loss is the task's, over calibration samples of the training
    split; the score, if it is wanted, is that on validation.
    """
    started = time.perf_counter()
    grouping = bench.grouping
    source = Source(
        model=bench.model(DENSE),
        widths=grouping.channels,
        kept=bench.kept(DENSE),
        name=DENSE,
    )
    rows: list[dict[str, Any]] = []
    for name, channels in grouping.channels.items():
        wanted = (0.0,) if name in grouping.blocks else fractions
        cells = []
        for fraction in wanted:
            width = 0 if name in grouping.blocks else max(round(fraction * channels), 1)
            widths = {**grouping.channels, name: width}
            plan = Plan(
                widths=widths,
                criterion=criterion,
                finetune=FineTune(epochs=0, lr=0.0),
                granularity=bench.study.space.granularity,
            )
            model = pruned(bench, plan, source, widths, Clock()).model
            cells.append(
                {"fraction": fraction, "width": width, **_judged(bench, model, score=score)}
            )
        rows.append({"name": name, "channels": channels, "cells": cells})
        yield {"done": len(rows), "total": len(grouping.channels)}
    return {
        "criterion": criterion,
        "fractions": list(fractions),
        "samples": bench.calibration_samples,
        "dense": _judged(bench, source.model, score=score),
        "groups": rows,
        "seconds": time.perf_counter() - started,
    }


def _judged(bench: Workbench, model: nn.Module, *, score: bool) -> dict[str, float]:
    model.eval()
    total, seen = 0.0, 0
    with torch.no_grad(), autocast(bench.device):
        for batch in bench.training_batches(
            samples=CALIBRATION_SAMPLES, batch_size=CALIBRATION_BATCH
        ):
            size = batch_size_of(batch.inputs)
            total += size * float(bench.task.step(model, batch)[0])
            seen += size
    found = {"loss": total / max(seen, 1)}
    return found | ({"score": float(bench.task.evaluate(model, "valid"))} if score else {})
