"""What a validation score is to be measured against: chance, and the score's own noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.pruning.forward import batch_size_of, map_tensors
from autoprune.training.scoring import Scorer, accuracy
from autoprune.training.task import Split, Task

RESAMPLES = 64
MOST_RESAMPLED = 2048
"""Samples that are resampled at most; of more, evenly spread ones stand for all."""
CERTAIN = 1e-4
"""A constant answer gives no class less than this, so that a log loss stays finite."""


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What a model's score on a split is to be measured against."""

    samples: int
    """Of the split."""
    standard_error: float | None
    """Of the model's score, for another draw of so many samples; None if it is not known."""
    chance: float | None
    """Score of the best answer that is the same for every sample; None if it is not known."""
    score: float | None = None
    """The model's own, if it was found on the way: on a large split that saves a pass."""


def score_and_yardstick(task: Task, model: nn.Module, split: Split) -> tuple[float, Yardstick]:
    """Return the model's score on `split`, and what it is to be measured against.

    A task may say the latter by a method ``yardstick(model, split)`` that returns a `Yardstick` or
    None; of any other, samples are counted, and noise is known if the metric is ``accuracy``.
    """
    own: Callable[[nn.Module, Split], Yardstick | None] | None = getattr(task, "yardstick", None)
    found = own(model, split) if own is not None else None
    if found is not None and found.score is not None:
        return found.score, found
    score = float(task.evaluate(model, split))
    if found is not None:
        return score, found
    batches = task.batches(split, batch_size=1024, seed=None)
    samples = sum(batch_size_of(batch.inputs) for batch in batches)
    shares = task.metric == "accuracy" and 0 <= score <= 1
    error = share_error(score, samples) if shares else None
    return score, Yardstick(samples=samples, standard_error=error, chance=None)


def share_error(share: float, samples: int) -> float:
    """Return the standard error of a share that was counted on so many samples.

    Laplace's rule of succession keeps it above 0 where all or none are right.

    >>> round(share_error(0.5, 40), 3), round(share_error(1.0, 40), 3)
    (0.077, 0.024)
    """
    smoothed = (share * samples + 1) / (samples + 2)
    return math.sqrt(smoothed * (1 - smoothed) / (samples + 2))


def score_error(scorer: Scorer, outputs: Any, targets: Any) -> float | None:
    """Return the standard error of a score; None if it cannot be had.

    For accuracy of one answer a sample it is the binomial one, else that of the bootstrap (Efron
    1979): the standard deviation of the score over samples drawn with replacement.
    """
    samples = batch_size_of(targets)
    if scorer is accuracy and isinstance(outputs, Tensor) and outputs.dim() <= 2:
        return share_error(accuracy(outputs, targets), samples)
    taken = min(samples, MOST_RESAMPLED)
    rows = torch.linspace(0, samples - 1, taken).round().long()
    generator = torch.Generator().manual_seed(0)
    scores = []
    try:
        for _ in range(RESAMPLES):
            drawn = rows[torch.randint(taken, (taken,), generator=generator)]
            parts = (map_tensors(lambda t, d=drawn: t[d], side) for side in (outputs, targets))  # type: ignore[misc]
            scores.append(float(scorer(*parts)))
    except Exception:  # a scorer may want each class in what it is given, or more samples
        return None
    error = float(torch.tensor(scores, dtype=torch.float64).std())
    return error * math.sqrt(taken / samples) if math.isfinite(error) else None


def chance(scorer: Scorer, answer: Any, targets: Any) -> float | None:
    """Return the score of an answer that is the same for all samples; None if it has none."""
    try:
        found = float(scorer(answer, targets))
    except Exception:  # a scorer may need more than one value, or more than one output
        return None
    return found if math.isfinite(found) else None


def constant_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return, in the shape of `outputs`, logits of how often each class is the target.

    `outputs` are [samples, classes, ...]; `targets` class numbers [samples, ...], negative ones
    left out, or shares [samples, classes, ...].
    """
    classes = outputs.shape[1]
    if targets.is_floating_point():
        counts = targets.transpose(0, 1).reshape(classes, -1).sum(1).double()
    else:
        counts = torch.bincount(targets[targets >= 0].reshape(-1), minlength=classes).double()
    logits = (counts / counts.sum()).clamp(min=CERTAIN).log().to(outputs)
    return logits.reshape(1, -1, *[1] * (outputs.dim() - 2)).expand_as(outputs).contiguous()


def constant_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return, in the shape of `outputs`, the logit of how often each label holds."""
    shares = targets.reshape(outputs.shape).double().mean(0, keepdim=True)
    logits = torch.logit(shares.clamp(CERTAIN, 1 - CERTAIN)).to(outputs)
    return logits.expand_as(outputs).contiguous()


def constant_numbers(outputs: Tensor, targets: Tensor, *, median: bool) -> Tensor:
    """Return, in the shape of `outputs`, the targets' mean or median."""
    shaped = targets.reshape(outputs.shape).to(outputs)
    middle = shaped.median(0, keepdim=True).values if median else shaped.mean(0, keepdim=True)
    return middle.expand_as(outputs).contiguous()
