"""Batches from arrays, datasets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from autoprune.errors import AutopruneError
from autoprune.pruning.forward import map_tensors, tensors_of
from autoprune.training.task import Batch, Batches

Unpack = Callable[[Any], tuple[Any, Any]]
LABEL_KEYS = ("labels", "label", "targets", "target")


def unpacked(item: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a batch; raise `AutopruneError` if they cannot be told."""
    if isinstance(item, Mapping):
        for key in LABEL_KEYS:
            if key in item:
                return {k: v for k, v in item.items() if k != key}, item[key]
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        return (item[0] if len(item) == 2 else tuple(item[:-1])), item[-1]
    length = f" of length {len(item)}" if isinstance(item, (tuple, list)) else ""
    raise AutopruneError(
        f"A dataset must give (inputs, targets) or a dict with one of {', '.join(LABEL_KEYS)}, "
        f"but it gave a {type(item).__name__}{length}."
    )


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split held in memory: a batch is an index into its tensors, nothing more."""

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        return len(tensors_of(self.inputs)[0])

    def batches(self, batch_size: int, seed: int | None) -> Batches:
        return _ArrayBatches(self, batch_size, seed)


@dataclass(frozen=True, eq=False)
class _ArrayBatches:
    split: ArraySplit
    batch_size: int
    seed: int | None

    def __len__(self) -> int:
        return len(self._indices(torch.arange(len(self.split))))

    def _indices(self, order: Tensor) -> list[Tensor]:
        parts = list(torch.split(order, self.batch_size))
        if self.seed is not None and len(parts) > 1 and len(parts[-1]) == 1:
            # BatchNorm cannot train on a single sample: it goes with the batch before.
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.split))
        if self.seed is not None:
            order = order[torch.randperm(len(order), generator=_generator(self.seed))]
        for index in self._indices(order):
            yield Batch(
                inputs=map_tensors(lambda t, i=index: t[i], self.split.inputs),  # type: ignore[misc]
                targets=map_tensors(lambda t, i=index: t[i], self.split.targets),  # type: ignore[misc]
                index=index,
            )


@dataclass(frozen=True, eq=False)
class LoaderSplit:
    """A split that a `Dataset` or `DataLoader` serves. A loader keeps its own batch size."""

    source: Dataset[Any] | DataLoader[Any]
    unpack: Unpack = unpacked
    """Returns inputs and targets of what the source gives."""

    @property
    def batch_size(self) -> int | None:
        return self.source.batch_size if isinstance(self.source, DataLoader) else None

    def batches(self, batch_size: int, seed: int | None) -> Batches:
        if isinstance(self.source, DataLoader):
            return _LoaderBatches(self.source, seed, self.unpack)
        options: dict[str, Any] = {}
        if seed is not None:
            # BatchNorm cannot train on a single sample.
            lone = len(cast("Sized", self.source)) % batch_size == 1
            drop_last = lone and len(cast("Sized", self.source)) > 1
            options = {"shuffle": True, "generator": _generator(seed), "drop_last": drop_last}
        loader = DataLoader(self.source, batch_size=batch_size, **options)
        return _LoaderBatches(loader, seed, self.unpack)


@dataclass(frozen=True, eq=False)
class _LoaderBatches:
    loader: DataLoader[Any]
    seed: int | None
    unpack: Unpack

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for item in self._items():
            inputs, targets = self.unpack(item)
            yield Batch(inputs=inputs, targets=targets)

    def _items(self) -> Iterator[Any]:
        if self.seed is None:
            yield from self.loader
            return
        own = _generators_of(self.loader)
        states = [generator.get_state() for generator in own]
        try:
            for generator in own:
                generator.manual_seed(self.seed)
            items, first = self._begun(self.seed)
            if first is not None:
                yield first
                yield from items
        finally:
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)

    def _begun(self, seed: int) -> tuple[Iterator[Any], Any]:
        """Return the loader's batches but the first, and the first; None if there is none."""
        # A loader without a generator draws its order from the global state at its first batch.
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            items = iter(self.loader)
            return items, next(items, None)
        finally:
            torch.set_rng_state(state)


def as_split(name: str, source: Any, *, integer_targets: bool) -> ArraySplit | LoaderSplit:
    """Make a split from (inputs, targets) arrays, a `Dataset`, a `DataLoader`, or one of a split.

    Raises
    ------
    AutopruneError
        If it is none of these, is empty, its lengths differ or it holds NaN or infinity.
    """
    if isinstance(source, TensorDataset):
        source = unpacked(source.tensors)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        inputs, targets = as_tensors(source[0]), as_tensors(source[1])
        if integer_targets:
            targets = map_tensors(as_labels, targets)
        _check_arrays(name, inputs, targets)
        return ArraySplit(inputs, targets)
    if isinstance(source, IterableDataset):
        raise AutopruneError(
            f"The {name} data must have a length and be open to shuffling, but are an "
            f"IterableDataset. Collect it into arrays, or give it a `__len__` and wrap it in a "
            f"DataLoader."
        )
    if isinstance(source, (Dataset, DataLoader)) or _is_dataset(source):
        source = LoaderSplit(cast("Dataset[Any] | DataLoader[Any]", source))
    if isinstance(source, LoaderSplit):
        if _length(name, source.source) == 0:
            raise AutopruneError(f"The {name} data must not be empty, but it is.")
        return source
    raise AutopruneError(
        f"The {name} data must be (inputs, targets), a Dataset or a DataLoader, "
        f"but is a {type(source).__name__}."
    )


def _length(name: str, source: Any) -> int:
    try:
        return len(source)
    except TypeError as error:
        raise AutopruneError(
            f"The {name} data must have a length, but their {type(source).__name__} has none. "
            f"Give the dataset a `__len__`, or collect it into arrays."
        ) from error


def _is_dataset(source: Any) -> bool:
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return indexed and not isinstance(source, Mapping)


def as_tensors(value: Any) -> Any:
    """Return a nest of arrays as one of tensors; raise `AutopruneError` for what is no number."""
    if isinstance(value, Mapping):
        return {key: as_tensors(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(as_tensors(item) for item in value)
    if not isinstance(value, Tensor):
        array = np.ascontiguousarray(np.asarray(value))
        if array.dtype.kind not in "biuf":
            raise AutopruneError(
                f"Data must be numbers, but an array of type {array.dtype} was given. "
                f"Encode it in the study file."
            )
        value = torch.from_numpy(array)
    return value.float() if value.dtype in (torch.float64, torch.float16) else value


def as_labels(targets: Tensor) -> Tensor:
    """Return class numbers as whole numbers, [n], and rows of probabilities as they are."""
    if targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.is_floating_point():
        if targets.dim() > 1:
            return targets  # class probabilities
        if not bool((targets == targets.round()).all()):
            raise AutopruneError(
                "Targets of `cross_entropy` must be class numbers or rows of probabilities, "
                "but are other numbers. For regression use loss='mse'."
            )
    return targets.long()


def _check_arrays(name: str, inputs: Any, targets: Any) -> None:
    tensors = tensors_of(inputs) + tensors_of(targets)
    lengths = {len(t) if t.dim() else 0 for t in tensors}
    if len(lengths) != 1:
        raise AutopruneError(
            f"The {name} inputs and targets must have the same length, "
            f"but have {' and '.join(str(n) for n in sorted(lengths))}."
        )
    if lengths == {0}:
        raise AutopruneError(f"The {name} data must not be empty, but it is.")
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise AutopruneError(
                f"The {name} data must be finite, but {bad} of its values are NaN or infinite. "
                f"Drop or impute them in the study file."
            )


def _generators_of(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return the generators that a loader or its samplers draw from, each once."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    drawing = (loader, loader.sampler, loader.batch_sampler, inner)
    found = [getattr(each, "generator", None) for each in drawing]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
