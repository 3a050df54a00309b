"""The ready-made task: inputs, targets, a loss and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.errors import AutopruneError, unknown
from autoprune.pruning.forward import batch_size_of, call, map_tensors, tensors_of
from autoprune.training.data import ArraySplit, LoaderSplit, as_split
from autoprune.training.device import autocast, device_of, to_device
from autoprune.training.fingerprints import content_digest
from autoprune.training.scoring import Scorer, binary_accuracy, get_scorer
from autoprune.training.task import Batch, Batches, Split
from autoprune.training.yardstick import (
    Yardstick,
    chance,
    constant_classes,
    constant_labels,
    constant_numbers,
    score_error,
)

Loss = Callable[[Any, Any], Tensor]


def _like(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Give targets the outputs' shape and type first: [n] and [n, 1] mean the same."""

    def shaped(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))

    return shaped


LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "mse": _like(F.mse_loss),
    "l1": _like(F.l1_loss),
    "bce_with_logits": _like(F.binary_cross_entropy_with_logits),
}
EVALUATION_BATCH = 256
"""Larger ones can be slow on a CPU: 1,024 at once took a depthwise-separable network 3.5 times as
long."""
REHEARSAL_BATCH = 32


class SupervisedTask:
    """Learning targets from inputs.

    Parameters
    ----------
    train, valid, test
        (inputs, targets) arrays or tensors, a `Dataset`, or a `DataLoader`. Inputs may be a tuple
        or dict of arrays for a model with several inputs. Candidates are chosen on `valid`;
        `test` is scored once, at the end; before a search, one batch of it is tried.
    loss
        ``cross_entropy``, ``mse``, ``l1``, ``bce_with_logits``, or a function
        ``loss(outputs, targets)`` that returns the mean over the batch.
    scorer
        ``accuracy``, the name of any scikit-learn scorer (``f1_macro``, ``r2``,
        ``neg_mean_absolute_error``, ...), or a function ``scorer(outputs, targets)``. By default
        accuracy for classification, r2 otherwise.
    higher_is_better
        For a scorer function: whether high is good. Named scorers are known to be.
    metric
        What to call the score; by default the scorer's name.
    augment
        Applied to each training batch's inputs. Switches the cached distillation off.

    Raises
    ------
    AutopruneError
        If data are empty, of different lengths or not finite, or a name is unknown.

    Examples
    --------
    >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
    >>> task = SupervisedTask(train=(x[:40], y[:40]), valid=(x[40:], y[40:]))
    >>> task.metric, len(task.batches("train", batch_size=16, seed=0))
    ('accuracy', 3)
    """

    def __init__(
        self,
        *,
        train: Any,
        valid: Any,
        test: Any = None,
        loss: str | Loss = "cross_entropy",
        scorer: str | Scorer | None = None,
        higher_is_better: bool = True,
        metric: str | None = None,
        augment: Callable[[Any], Any] | None = None,
    ) -> None:
        if isinstance(loss, str) and loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        self.classifies = loss in ("cross_entropy", F.cross_entropy) or isinstance(
            loss, nn.CrossEntropyLoss
        )
        self._loss = LOSSES[loss] if isinstance(loss, str) else loss
        binary = loss == "bce_with_logits"
        if scorer is None:
            scorer = "accuracy" if self.classifies or binary else "r2"
        if binary and scorer == "accuracy":
            self._scorer: Scorer = binary_accuracy
        elif isinstance(scorer, str):
            known = isinstance(loss, str) or self.classifies
            self._scorer = get_scorer(
                scorer, classifies=self.classifies or binary if known else None
            )
        else:
            self._scorer = scorer
        self.higher_is_better = True if isinstance(scorer, str) else higher_is_better
        name: str = scorer if isinstance(scorer, str) else getattr(scorer, "__name__", "score")
        self.metric = metric or name
        self._augment = augment
        for split, source in (("train", train), ("valid", valid)):
            if source is None:
                raise AutopruneError(
                    f"`{split}` must be (inputs, targets), a Dataset or a DataLoader, but is None. "
                    f"Hold some of the data back if there is one split alone."
                )
        self._splits: dict[str, ArraySplit | LoaderSplit] = {
            name: as_split(name, source, integer_targets=self.classifies)
            for name, source in (("train", train), ("valid", valid), ("test", test))
            if source is not None
        }

    @property
    def fixed_batch_size(self) -> int | None:
        """The batch size of a training `DataLoader`, which autoprune cannot change."""
        train = self._splits["train"]
        return train.batch_size if isinstance(train, LoaderSplit) else None

    @property
    def has_test(self) -> bool:
        return "test" in self._splits

    def fingerprint(self, split: Split) -> str | None:
        """Return a digest of a split that is held in memory; None for any other."""
        held = self._splits[split]
        if not isinstance(held, ArraySplit):
            return None
        return content_digest([*tensors_of(held.inputs), *tensors_of(held.targets)])

    def batches(self, split: Split, *, batch_size: int, seed: int | None) -> Batches:
        if split not in self._splits:
            raise AutopruneError(f"The task must have {split} data to use it, but was given none.")
        batches = self._splits[split].batches(batch_size, seed)
        if self._augment is None or split != "train" or seed is None:
            return batches
        augment = self._augment

        def augmented(batch: Batch) -> Batch:  # no more the sample that it was: no index
            return Batch(inputs=augment(batch.inputs), targets=batch.targets)

        return Changed(batches, augmented)

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = call(model, batch.inputs)
        if isinstance(self._loss, nn.Module):  # its class weights live where the outputs do
            self._loss.to(tensors_of(outputs)[0].device)
        return self._loss(outputs, batch.targets), outputs

    def distance(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        """Hinton et al. 2015: softened KL x T^2 for classification; else the squared difference."""
        pairs = comparable(outputs, teacher)
        if self.classifies:
            terms = [soft_divergence(o, t, temperature) for o, t in pairs]
        else:
            terms = [F.mse_loss(o, t) for o, t in pairs]
        return torch.stack(terms).sum()

    def evaluate(self, model: nn.Module, split: Split) -> float:
        return float(self._scorer(*self._answers(model, split)))

    def rehearse(self, model: nn.Module, split: Split) -> None:
        """Run `model` on one batch of a split, as `evaluate` does, and score nothing.

        Not in a subclass that evaluates in its own way: that may ask for something else.
        """
        if type(self).evaluate is SupervisedTask.evaluate:
            next(self._heard(model, split, REHEARSAL_BATCH))

    def yardstick(self, model: nn.Module, split: Split) -> Yardstick | None:
        """Return what a score of `model` on `split` is to be measured against.

        None in a subclass that evaluates in its own way: the scorer says nothing of that.
        """
        if type(self).evaluate is not SupervisedTask.evaluate:
            return None
        answers = self._answers(model, split)
        return replace(self._yardstick(*answers), score=float(self._scorer(*answers)))

    def _yardstick(self, outputs: Any, targets: Any) -> Yardstick:
        constant = self._constant_answer(outputs, targets)
        return Yardstick(
            samples=batch_size_of(targets),
            standard_error=score_error(self._scorer, outputs, targets),
            chance=None if constant is None else chance(self._scorer, constant, targets),
        )

    def _constant_answer(self, outputs: Any, targets: Any) -> Tensor | None:
        """Return the best answer that is the same for every sample, if the loss says what it is."""
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            return None
        if self.classifies and outputs.dim() > 1:
            return constant_classes(outputs, targets)
        if outputs.numel() != targets.numel():
            return None
        if self._loss is LOSSES["bce_with_logits"]:
            return constant_labels(outputs, targets)
        if self._loss in (LOSSES["mse"], LOSSES["l1"]):
            return constant_numbers(outputs, targets, median=self._loss is LOSSES["l1"])
        return None

    def _answers(self, model: nn.Module, split: Split) -> tuple[Any, Any]:
        """Return what `model` says of a whole split, and what is true."""
        outputs, targets = zip(*self._heard(model, split), strict=True)
        return _joined(list(outputs)), _joined(list(targets))

    def _heard(
        self, model: nn.Module, split: Split, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Any, Any]]:
        """Yield what `model` says of each batch of a split, and what is true, on the CPU."""
        device = device_of(model)
        model.eval()
        for batch in self.batches(split, batch_size=batch_size, seed=None):
            with torch.inference_mode(), autocast(device):
                answer = self._answer(model, to_device(batch.inputs, device))
                outputs = map_tensors(lambda t: t.float().cpu(), answer)
            yield outputs, map_tensors(lambda t: t.cpu(), batch.targets)

    def _answer(self, model: nn.Module, inputs: Any) -> Any:
        """Return what of a model's outputs is scored."""
        return call(model, inputs)


@dataclass(frozen=True, eq=False)
class Changed:
    """Batches that are changed as they are read."""

    batches: Batches
    change: Callable[[Batch], Batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.change, self.batches)


def comparable(outputs: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
    """Pair what a model answers in training with what its teacher does.

    Whole numbers, such as chosen classes, teach nothing, and a teacher does not have the further
    outputs that some models have in training alone.

    Raises
    ------
    AutopruneError
        If nothing is left to learn.
    """
    both = zip(tensors_of(outputs), tensors_of(teacher), strict=False)
    pairs = [(o, t) for o, t in both if o.is_floating_point() and o.shape == t.shape]
    if not pairs:
        raise AutopruneError(
            "Distillation compares what a model returns in training with what it returns in "
            "evaluation, but no output is the same in both. Use distill_weight=0."
        )
    return pairs


def soft_divergence(
    outputs: Tensor, teacher: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Return how far softened classes are from the teacher's, in the mean over the samples.

    They count by their `weights`, [samples], if there are any.
    """
    student = F.log_softmax(outputs / temperature, 1)
    target = F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(student, target, reduction="none", log_target=True).sum(1)
    if weights is not None:
        divergence = divergence * weights
    return divergence.mean() * temperature**2


def _joined(parts: list[Any]) -> Any:
    """Concatenate a list of nests of tensors into one nest."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part if part.dim() else part[None] for part in parts])
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        items = [_joined(list(each)) for each in zip(*parts, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return parts
