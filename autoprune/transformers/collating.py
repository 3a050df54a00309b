"""Tokenised samples as one batch in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import AutopruneError, first_line
from autoprune.training.data import LABEL_KEYS

Collator = Callable[[list[Any]], Mapping[str, Any]]
PADDING: Mapping[str, int] = {"attention_mask": 0, "token_type_ids": 0, "labels": -100}


def collated(source: Any, collator: Collator | None, *, padding: int) -> Mapping[str, Any]:
    """Return a split as a dict of tensors.

    Parameters
    ----------
    source
        A dict of arrays, or a sequence of samples that are dicts.
    collator
        Joins samples; by default sequences are padded to the longest.
    padding
        What token ids are padded with.

    Raises
    ------
    AutopruneError
        If there are no samples, or they cannot be joined.
    """
    if isinstance(source, Mapping):
        return source
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise AutopruneError(
            f"Data must be a list of dicts, a Dataset, a dict of arrays or a DataLoader, but are a "
            f"{type(source).__name__}. Tokenise them, and collect them into a list."
        )
    samples = [source[number] for number in range(len(source))]
    if not samples:
        raise AutopruneError("Data must not be empty, but are.")
    if collator is not None:
        try:
            return collator(samples)
        except Exception as error:
            raise AutopruneError(
                f"The collator must join the samples, but raised {first_line(error)}."
            ) from error
    if not all(isinstance(sample, Mapping) for sample in samples):
        raise AutopruneError(
            f"Samples must be dicts, as a tokeniser makes them, but are of type "
            f"{type(samples[0]).__name__}. Pass a collator that joins them."
        )
    return {
        name: _joined(name, [sample[name] for sample in samples], padding)
        for name in samples[0]
        if not isinstance(samples[0][name], str)
    }


def _joined(name: str, values: Sequence[Any], padding: int) -> Tensor:
    try:
        tensors = [torch.as_tensor(np.asarray(value)) for value in values]
        if len({tensor.shape for tensor in tensors}) == 1:
            return torch.stack(tensors)
        if any(tensor.dim() != 1 for tensor in tensors):
            raise ValueError("samples of several shapes")
    except (TypeError, ValueError) as error:
        raise AutopruneError(
            f"Column {name!r} must hold numbers or sequences of them, but joining it raised "
            f"{first_line(error)}. Leave it out, or pass a collator."
        ) from error
    fill = PADDING["labels"] if name in LABEL_KEYS else PADDING.get(name, padding)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
