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
UNLABELLED = -100
"""The label of entries that neither loss nor score count, as everywhere in transformers."""
IDS, MASK = "input_ids", "attention_mask"
MASKED = (IDS, "input_values")
"""Ends of names of sequences of which a mask says what is padding."""


def collated(source: Any, collator: Collator | None, *, padding: int) -> Mapping[str, Any]:
    """Return a split as a dict of tensors.

    Parameters
    ----------
    source
        A dict of arrays, or a sequence of samples that are dicts.
    collator
        Joins samples; by default sequences are padded to the longest at their ends, token ids with
        `padding`, labels with -100 and all else with 0. Where that happens and samples have no
        mask, one is made, as a model cannot tell padding from what was said.
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
    odd = next((sample for sample in samples if not isinstance(sample, Mapping)), None)
    if odd is not None:
        raise AutopruneError(
            f"Samples must be dicts, as a tokeniser makes them, but one is of type "
            f"{type(odd).__name__}. Pass a collator that joins them."
        )
    columns = {
        name: _tensors(name, [sample[name] for sample in samples])
        for name in samples[0]
        if not isinstance(samples[0][name], str)
    }
    return {name: _joined(name, column, padding) for name, column in _with_masks(columns).items()}


def _tensors(name: str, values: Sequence[Any]) -> list[Tensor]:
    """Return a column's samples: all of one shape, or sequences."""
    try:
        tensors = [torch.as_tensor(np.asarray(value)) for value in values]
        if len({t.shape for t in tensors}) > 1 and any(t.dim() != 1 for t in tensors):
            raise ValueError("samples of several shapes")
    except (TypeError, ValueError) as error:
        raise AutopruneError(
            f"Column {name!r} must hold numbers or sequences of them, but joining it raised "
            f"{first_line(error)}. Leave it out, or pass a collator."
        ) from error
    return tensors


def _with_masks(columns: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Return columns with a mask for each sequence that will be padded and has none."""
    found = dict(columns)
    for name, column in columns.items():
        end = next((end for end in MASKED if name.endswith(end)), None)
        if end is None or len({tensor.shape for tensor in column}) == 1:
            continue
        mask = name.removesuffix(end) + MASK  # `decoder_input_ids` have a mask of their own
        if mask not in columns:
            found[mask] = [torch.ones(len(tensor), dtype=torch.long) for tensor in column]
    return found


def _joined(name: str, tensors: list[Tensor], padding: int) -> Tensor:
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    fill = UNLABELLED if name in LABEL_KEYS else padding if name.endswith(IDS) else 0
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
