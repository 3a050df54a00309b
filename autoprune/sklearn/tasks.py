"""What an estimator's network learns: numbers, in standard deviations; samples with weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from autoprune.pruning.forward import call
from autoprune.training.scoring import get_weighted_scorer
from autoprune.training.supervised import SupervisedTask, soft_divergence
from autoprune.training.task import Batch

Arrays = tuple[NDArray[Any], NDArray[Any]]
"""Inputs [samples, features] and targets [samples, ...]."""
Weighted = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Inputs [samples, features], targets [samples, ...] and weights [samples]."""


class RegressionTask(SupervisedTask):
    """Learning numbers, by squared errors in standard deviations of the targets.

    So neither the targets' units nor which of several has the larger numbers make a difference.

    Parameters
    ----------
    train, valid
        The splits.
    scale
        Standard deviation of each target, [targets].
    scoring
        The name of one of scikit-learn's scorers; r2 by default.

    Examples
    --------
    >>> x, y = np.zeros((4, 2), np.float32), np.array([0, 0, 30, 30], np.float32)
    >>> task = RegressionTask(train=(x, y), valid=(x, y), scale=[15.0])
    >>> says_15 = nn.Linear(2, 1)
    >>> says_15.bias.data[:] = 15.0
    >>> loss, _ = task.step(says_15, Batch(inputs=torch.tensor(x), targets=torch.tensor(y)))
    >>> loss.item()
    1.0
    """

    def __init__(
        self, *, train: Arrays, valid: Arrays, scale: ArrayLike, scoring: str | None = None
    ) -> None:
        super().__init__(train=train, valid=valid, loss="mse", scorer=scoring)
        self._scale = torch.as_tensor(np.asarray(scale, np.float32))

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        # Outputs leave in these units, so that distillation has them, too.
        outputs, targets = _scaled(self._scale, call(model, batch.inputs), batch.targets)
        return self._loss(outputs, targets), outputs


class WeightedTask(SupervisedTask):
    """Learning in which samples count by their weights: in loss, distillation and score.

    Parameters
    ----------
    train, valid
        The splits. A weight of 2 is as good as the same sample twice; the mean of all should be 1.
    loss
        ``cross_entropy``, ``bce_with_logits`` or ``mse``.
    scoring
        The name of one of scikit-learn's scorers.
    scale
        With ``mse``, the standard deviation of each target, [targets], which errors are taken in.

    Examples
    --------
    >>> x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 1, 1])
    >>> split = (x, y, np.array([3, 1, 1, 1], np.float32))
    >>> task = WeightedTask(train=split, valid=split, loss="cross_entropy", scoring="accuracy")
    >>> says_no = nn.Linear(2, 2)
    >>> says_no.bias.data[:] = Tensor([1.0, 0.0])
    >>> task.evaluate(says_no, "valid")  # half of all weight, though a quarter of the samples
    0.5
    """

    def __init__(
        self,
        *,
        train: Weighted,
        valid: Weighted,
        loss: str,
        scoring: str,
        scale: ArrayLike = 1.0,
    ) -> None:
        scorer = get_weighted_scorer(scoring, classifies=loss != "mse")
        super().__init__(
            train=(train[0], train[1:]),
            valid=(valid[0], valid[1:]),
            loss=lambda outputs, targets: self._loss_of(outputs, *targets),
            scorer=lambda outputs, targets: scorer(outputs, *targets),
            metric=scoring,
        )
        self._kind = loss
        self._scale = torch.as_tensor(np.asarray(scale, np.float32))

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = call(model, batch.inputs)
        targets, weights = batch.targets
        if self._kind == "mse":
            outputs, targets = _scaled(self._scale, outputs, targets)
        # The weights go with the outputs, so that distillation has them, too.
        return self._loss_of(outputs, targets, weights), (outputs, weights)

    def distance(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        (student, weights), (dense, _) = outputs, teacher
        if self._kind == "cross_entropy":
            return soft_divergence(student, dense, temperature, weights)
        return _mean(_by_sample((student - dense) ** 2), weights)

    def _loss_of(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        if self._kind == "cross_entropy":
            losses = F.cross_entropy(outputs, targets, reduction="none")
        else:
            shaped = targets.reshape(outputs.shape).to(outputs.dtype)
            loss = F.mse_loss if self._kind == "mse" else F.binary_cross_entropy_with_logits
            losses = _by_sample(loss(outputs, shaped, reduction="none"))
        return _mean(losses, weights)


def _scaled(scale: Tensor, *values: Tensor) -> list[Tensor]:
    """Return `values` of shape [samples] or [samples, targets] in units of `scale`, [targets]."""
    return [v / scale.to(v.device) for v in values]


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).mean()


def _by_sample(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1)
