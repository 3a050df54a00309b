"""What a network learns from, and the part of it that judges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALIDATING = 2
"""Samples that a network is judged by, at least."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many samples a network learns from, and the sizes of what it reads and answers."""

    n_samples: int
    n_features: int
    n_outputs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What a network learns from: numbers alone."""

    inputs: NDArray[np.float32]
    """[samples, features]"""
    targets: NDArray[Any]
    """[samples] of class numbers, or [samples] or [samples, targets] of numbers."""
    classes: int | None
    """How many there are; None for a regression."""
    weights: NDArray[np.float32] | None = None
    """[samples], above 0; None where all count the same."""

    def part(self, index: NDArray[np.intp]) -> Data:
        """Return some of the samples."""
        weights = None if self.weights is None else self.weights[index]
        return replace(
            self, inputs=self.inputs[index], targets=self.targets[index], weights=weights
        )

    @property
    def shape(self) -> Shape:
        outputs = self.classes
        if outputs is None:
            outputs = 1 if self.targets.ndim == 1 else self.targets.shape[1]
        return Shape(n_samples=len(self.inputs), n_features=self.inputs.shape[1], n_outputs=outputs)


def split(data: Data, fraction: float, *, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw which samples train and which validate; each class gives its share of both.

    No class is missing in training. There are at least two samples to validate with.

    Raises
    ------
    ValueError
        If there are too few samples for that.

    >>> data = Data(inputs=np.zeros((10, 1), np.float32), targets=np.arange(10) % 2, classes=2)
    >>> train, valid = split(data, 0.2, seed=0)
    >>> sorted(data.targets[valid].tolist()), len(train)
    ([0, 1], 8)
    """
    rng = np.random.default_rng(seed)
    count = len(data.inputs)
    kinds = data.targets if data.classes is not None else np.zeros(count, int)
    least = len(np.unique(kinds)) + VALIDATING
    if count < least:
        raise ValueError(
            f"Found array with {count} sample(s) while a minimum of {least} is required, to train "
            f"and to validate."
        )
    wanted = min(max(round(fraction * count), VALIDATING), count - least + VALIDATING)
    # In turns of the classes, so that any beginning has of each what it should.
    places = np.empty(count)
    for kind in np.unique(kinds):
        members = rng.permutation(np.flatnonzero(kinds == kind))
        places[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
        places[members[-1]] = np.inf  # the last one trains, whatever happens
    order = np.argsort(places, kind="stable")
    valid = np.sort(order[:wanted])
    return np.setdiff1d(np.arange(count), valid), valid
