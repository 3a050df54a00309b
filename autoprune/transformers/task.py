"""The task of a Hugging Face model: its own loss, tokenised data, scores of labelled entries."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autoprune.errors import AutopruneError, unknown
from autoprune.pruning.forward import call, map_tensors
from autoprune.training.data import LABEL_KEYS, LoaderSplit, as_labels, as_tensors
from autoprune.training.scoring import Scorer
from autoprune.training.supervised import (
    EVALUATION_BATCH,
    REHEARSAL_BATCH,
    Changed,
    SupervisedTask,
    soft_divergence,
)
from autoprune.training.task import Batch, Batches, Split
from autoprune.training.yardstick import Yardstick
from autoprune.transformers.collating import MASK, UNLABELLED, Collator, collated


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a head of a model is for."""

    heads: tuple[str, ...]
    """What its class's name ends with."""
    loss: str = "cross_entropy"
    """What distance and score go by; what is minimised is the model's own loss."""
    tokens: bool = False
    """Whether there is a label for each token."""
    ahead: int = 0
    """By how many places labels are ahead of what they are compared with."""


KINDS: dict[str, Kind] = {
    "classes": Kind(
        heads=(
            "ForSequenceClassification",
            "ForImageClassification",
            "ForAudioClassification",
            "ForMultipleChoice",
            "ForNextSentencePrediction",
        )
    ),
    "tokens": Kind(heads=("ForTokenClassification",), tokens=True),
    "masked": Kind(heads=("ForMaskedLM",), tokens=True),
    "causal": Kind(heads=("ForCausalLM", "LMHeadModel"), tokens=True, ahead=1),
}
LANGUAGE = ("masked", "causal")
TOKEN_SCORES: dict[str, bool] = {"loss": False, "accuracy": True}
"""Scores of language models, which are summed up batch by batch, and whether high is good."""


def kind_of(model: nn.Module) -> tuple[str, Kind]:
    """Return what a model's head is for; raise `AutopruneError` if it is none that is known."""
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    for label, kind in KINDS.items():
        if name.endswith(kind.heads):
            problem = getattr(config, "problem_type", None)
            if label == "classes" and problem == "multi_label_classification":
                return "labels", replace(kind, loss="bce_with_logits")
            if label == "classes" and (
                problem == "regression" or getattr(config, "num_labels", 2) == 1
            ):
                return "numbers", replace(kind, loss="mse")
            return label, kind
    heads = ", ".join(head for kind in KINDS.values() for head in kind.heads)
    raise AutopruneError(
        f"A Hugging Face model must have a head that is known ({heads}), but {name} has none of "
        f"them. Use SupervisedTask with a loss and a scorer of your own."
    )


class TransformersTask(SupervisedTask):
    """Tokenised data for a Hugging Face model, which brings its own loss.

    Parameters
    ----------
    model
        Says what its head is for and which columns it takes; it is not kept.
    train, valid, test
        A list of dicts or a `datasets.Dataset` (one sample each), a dict of arrays or tensors, or a
        `DataLoader` with a collator. Labels are under ``labels`` or ``label``; a causal language
        model needs none, and learns its own inputs. Columns that the model does not take are left
        out.
    collator
        Makes a batch of a list of samples, e.g. ``DataCollatorWithPadding(tokenizer)``. By default
        sequences are padded at their ends: ids with the config's ``pad_token_id``, labels with
        -100, all else with 0; a mask is made where samples have none. Not for a `DataLoader`,
        which has its own.
    scorer
        As in `SupervisedTask`; over all labelled tokens for token classification. Language models
        have ``loss``, the mean over labelled tokens, by default, or ``accuracy``.
    metric, higher_is_better
        As in `SupervisedTask`.

    Raises
    ------
    AutopruneError
        If the model's head is not known, or data lack labels or cannot be joined to batches. Of a
        `DataLoader` that shows when a batch is read.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        train: Any,
        valid: Any,
        test: Any = None,
        collator: Collator | None = None,
        scorer: str | Scorer | None = None,
        higher_is_better: bool = True,
        metric: str | None = None,
    ) -> None:
        self.kind, self._kind = kind_of(model)
        self._columns = tuple(inspect.signature(model.forward).parameters)
        padding = getattr(getattr(model, "config", None), "pad_token_id", None) or 0

        def split(source: Any) -> Any:
            if source is None:
                return None
            if isinstance(source, DataLoader):
                return LoaderSplit(source, unpack=self._labelled)
            return self._labelled(collated(source, collator, padding=padding))

        language = self.kind in LANGUAGE
        super().__init__(
            train=split(train),
            valid=split(valid),
            test=split(test),
            loss=self._kind.loss,
            scorer=None if language else scorer,
            higher_is_better=higher_is_better,
            metric=metric,
        )
        if language:
            name = scorer or "loss"
            if name not in TOKEN_SCORES:
                raise unknown("score of a language model", str(name), TOKEN_SCORES)
            self._score = str(name)
            self.metric = metric or self._score
            self.higher_is_better = TOKEN_SCORES[self._score]

    def _labelled(self, item: Any) -> tuple[dict[str, Any], Tensor]:
        """Return what the model takes of a batch, and its labels, of the type that its loss wants.

        Raises
        ------
        AutopruneError
            If either is missing.
        """
        if not isinstance(item, Mapping):
            raise AutopruneError(
                f"A DataLoader must give dicts, as a tokeniser makes them, but gives a "
                f"{type(item).__name__}. Pass it a `collate_fn` that returns a dict."
            )
        inputs = {
            name: value
            for name, value in item.items()
            if name in self._columns and name not in LABEL_KEYS
        }
        keys = ("labels",) if self._kind.tokens else LABEL_KEYS  # `label` is a whole sample's
        labels = next((item[key] for key in keys if key in item), None)
        if labels is None and self.kind == "causal" and "input_ids" in inputs:
            labels = torch.as_tensor(inputs["input_ids"])
            if MASK in item:  # whether or not the model takes one
                absent = torch.as_tensor(item[MASK]) == 0
                labels = labels.masked_fill(absent, UNLABELLED)
        if labels is None:
            raise AutopruneError(
                f"The data must have one of {', '.join(keys)}, but have "
                f"{', '.join(map(str, item))}. Rename the column."
            )
        if not inputs:
            raise AutopruneError(
                f"The data must have a column that the model takes ({', '.join(self._columns)}), "
                f"but have {', '.join(map(str, item))}. Tokenise them first."
            )
        return inputs, self._as_labels(as_tensors(labels))

    def _as_labels(self, labels: Tensor) -> Tensor:
        """Return labels as the model's loss wants them: transformers tells losses by the type."""
        if self.kind == "labels" and labels.dim() != 2:
            raise AutopruneError(
                f"Labels must be rows of 0 and 1, one for each class, as the config's problem_type "
                f"is 'multi_label_classification', but have {labels.dim()} dimensions."
            )
        if self._kind.loss != "cross_entropy":
            return labels.float()
        whole = self._kind.tokens and not labels.is_floating_point()
        numbers = labels.long() if whole else as_labels(labels)
        if numbers.is_floating_point():
            raise AutopruneError(
                "Labels must be class numbers, but are rows of other numbers. For several labels a "
                "sample set the config's problem_type to 'multi_label_classification', for numbers "
                "to 'regression'."
            )
        return numbers

    def batches(self, split: Split, *, batch_size: int, seed: int | None) -> Batches:
        return Changed(super().batches(split, batch_size=batch_size, seed=seed), self._prepared)

    def _prepared(self, batch: Batch) -> Batch:
        """Leave out what is padding in every sample."""
        inputs, labels = batch.inputs, batch.targets
        mask = inputs.get(MASK)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            length = mask.shape[1]
            used = int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else length
            if used < length:

                def trimmed(tensor: Tensor) -> Tensor:
                    long = tensor.dim() > 1 and tensor.shape[1] == length
                    return tensor[:, :used] if long else tensor

                inputs = map_tensors(trimmed, inputs)
                labels = map_tensors(trimmed, labels) if self._kind.tokens else labels
        return Batch(inputs=inputs, targets=labels, index=batch.index)

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        answer = call(model, {**batch.inputs, "labels": batch.targets})
        logits, _ = self._compared(answer.logits, batch.targets)
        # Rows of tokens are no rows of samples: they cannot be looked up again by their number.
        return answer.loss, {"tokens": logits} if self._kind.tokens else logits

    def _compared(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and labels of what counts: the samples, or the labelled tokens."""
        if not self._kind.tokens:
            return logits, labels
        ahead = self._kind.ahead
        logits, labels = logits[:, : logits.shape[1] - ahead], labels[:, ahead:]
        counts = labels != UNLABELLED
        return logits[counts], labels[counts]

    def distance(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        if self._kind.tokens:
            return soft_divergence(outputs["tokens"], teacher["tokens"], temperature)
        return super().distance(outputs, teacher, temperature)

    def evaluate(self, model: nn.Module, split: Split) -> float:
        if self.kind not in LANGUAGE:
            return super().evaluate(model, split)
        total, count = 0.0, 0
        for logits, labels in self._heard(model, split):
            if self._score == "loss":
                total += float(F.cross_entropy(logits, labels, reduction="sum"))
            else:
                total += float((logits.argmax(1) == labels).sum())
            count += len(labels)
        return total / max(count, 1)

    def rehearse(self, model: nn.Module, split: Split) -> None:
        if type(self).evaluate is TransformersTask.evaluate:
            next(self._heard(model, split, REHEARSAL_BATCH))

    def yardstick(self, model: nn.Module, split: Split) -> Yardstick | None:
        if self.kind in LANGUAGE:
            return None
        return self._yardstick(*self._answers(model, split))

    def _heard(
        self, model: nn.Module, split: Split, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits and labels of what counts, batch by batch, on the CPU."""
        size = batch_size // 16 if self._kind.tokens else batch_size // 4
        for logits, labels in super()._heard(model, split, size):
            yield self._compared(logits, labels)

    def _answer(self, model: nn.Module, inputs: Any) -> Any:
        return call(model, inputs).logits
