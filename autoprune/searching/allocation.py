"""How a size is spread over the groups: a structured family with few numbers.

width_g is the allowed width nearest to s * C_g^eta * exp(beta * z_g + kappa * depth_g), where C_g
is the dense group's size, z_g its standardised sensitivity, depth_g in [-1, 1] its place from input
to output, and s is solved so that the plan has the wanted number of parameters. eta = 1 is a
uniform ratio, eta = 0 a constant width. The other way is one threshold on the LAMP scores of all
channels (Lee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autoprune.pruning.cost import CostModel, Widths
from autoprune.searching.widths import allowed_widths, boundaries

Floats = npt.NDArray[np.float64]


PROBES = 16
"""How many scales are tried at once: each try costs little more than one alone."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers that say how a size is spread."""

    eta: float = 0.5
    beta: float = 0.0
    kappa: float = 0.0


class Allocator:
    """Solves widths for a wanted number of parameters.

    Parameters
    ----------
    sensitivity
        By group; what is left out counts as 0.
    lamp
        By group, the LAMP score of each of its channels; without it there are no `lamp_widths`.
    allowed
        By group, the widths it may have, ascending; without it, all of them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from autoprune.pruning.graph import find_groups
    >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    >>> allocator = Allocator(CostModel(find_groups(model, torch.zeros(1, 8))))
    >>> allocator.widths(500, Shape())
    {'0': 17, '2': 17}
    """

    def __init__(
        self,
        cost: CostModel,
        *,
        sensitivity: Mapping[str, float] | None = None,
        lamp: Mapping[str, Sequence[float]] | None = None,
        allowed: Mapping[str, Widths] | None = None,
    ) -> None:
        self.cost = cost
        every = allowed or dict(zip(cost.names, map(allowed_widths, cost.channels), strict=True))
        # Blocks stay, whatever the size: they come after the groups, and nothing sways them.
        block: Widths = np.ones(1, dtype=np.int64)
        self._allowed = [every.get(name, block) for name in cost.names]
        self._boundaries: Floats = np.concatenate([boundaries(w) for w in self._allowed])
        self._every: Widths = np.concatenate(self._allowed)
        lengths = np.array([len(widths) for widths in self._allowed], dtype=np.int64)
        self._first: Widths = np.cumsum(lengths) - lengths
        """Where each group's allowed widths begin among `_every`."""
        edges = np.concatenate([[0], np.cumsum(lengths - 1)])
        self._edges: Widths = edges.astype(np.int64)
        """Where each group's boundaries begin, and the last one's end, among all boundaries."""
        self._lowest: Widths = np.array([widths[0] for widths in self._allowed], dtype=np.int64)
        count = len(cost.groups)
        raw = np.array([(sensitivity or {}).get(name, 0.0) for name in cost.groups])
        depth = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
        none = np.zeros(len(cost.names) - count)
        self._z: Floats = np.concatenate([(raw - raw.mean()) / (raw.std() or 1.0), none])
        self._depth: Floats = np.concatenate([depth, none])
        self._lamp: list[Floats] = [
            np.sort(np.array((lamp or {}).get(n, [np.inf]))) for n in cost.names if lamp
        ]

    @cached_property
    def dense_params(self) -> int:
        return int(self.cost.params_of(self.cost.channels[None])[0])

    @cached_property
    def least_params(self) -> int:
        """Parameters of the smallest model there is."""
        return int(self.cost.params_of(self._lowest[None])[0])

    def widths(
        self, params: int, shape: Shape, *, at_most: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Return the widest plan of `shape` that has at most `params` parameters.

        Below the smallest possible size, that is the smallest plan. With `at_most` (a parent's
        widths) no group gets wider than there.
        """
        tilt: Floats = np.exp(shape.beta * self._z + shape.kappa * self._depth)
        weights: Floats = self.cost.channels.astype(np.float64) ** shape.eta * tilt
        return self._scaled(weights, params, at_most)

    def widths_like(
        self, widths: Mapping[str, float], params: int, *, at_most: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Return the widest plan in the proportions of `widths` that has at most `params`.

        Bounds are as for `widths`; blocks are at most what they are there.
        """
        ones = dict.fromkeys(self.cost.names, 1.0)
        weights: Floats = np.array([{**ones, **widths}[name] for name in self.cost.names])
        return self._scaled(weights, params, at_most)

    def tilts_of(self, rows: Widths) -> Floats:
        """Return how plans lean on depth and on sensitivity, over the square root of the channels.

        Slopes of the logarithm of ``width / channels ** 0.5``: the `kappa` and the `beta` of a
        plan, as far as it is one of the family. `rows` is [plans, groups], the result [plans, 2].
        """
        count = len(self.cost.groups)
        logs = np.log(rows[:, :count]) - 0.5 * np.log(self.cost.channels[:count])
        axes = np.stack([self._depth[:count], self._z[:count]])
        axes = axes - axes.mean(1, keepdims=True)
        lengths = np.maximum((axes**2).sum(1), 1e-12)
        return np.asarray((logs - logs.mean(1, keepdims=True)) @ axes.T / lengths)

    def _scaled(
        self, weights: Floats, params: int, at_most: Mapping[str, int] | None
    ) -> dict[str, int]:
        ceiling = self.cost.row(at_most) if at_most else self.cost.channels
        # As s grows, widths change at these scales and nowhere else, and none of them falls.
        steps: Floats = self._boundaries / np.repeat(weights, np.diff(self._edges))
        scales = np.unique(steps)
        fitting, low, high = self._lowest, 0, len(scales)
        while low < high:
            probes = np.unique(np.linspace(low, high - 1, PROBES).astype(np.int64))
            rows = self._rows(scales[probes], steps, ceiling)
            fits = int((self.cost.params_of(rows) <= params).sum())
            if fits:
                fitting, low = rows[fits - 1], int(probes[fits - 1]) + 1
            if fits < len(probes):
                high = int(probes[fits])
        return self._named(np.minimum(fitting, ceiling))

    @property
    def knows_lamp(self) -> bool:
        """Whether it was given LAMP scores."""
        return bool(self._lamp)

    def lamp_widths(
        self, params: int, *, at_most: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Return the widest plan of at most `params` parameters that cuts at one LAMP score.

        Lee et al. 2021: every group keeps its channels of at least that score, of those that the
        dense model had. Bounds are as for `widths`.
        """
        ceiling = self.cost.row(at_most) if at_most else self.cost.channels
        thresholds = np.unique(np.concatenate(self._lamp))
        low, high = 0, len(thresholds)  # the answer's place: widths fall as thresholds rise
        while low < high:
            middle = (low + high) // 2
            row = self._lamp_row(float(thresholds[middle]), ceiling)
            if int(self.cost.params_of(row[None])[0]) <= params:
                high = middle
            else:
                low = middle + 1
        threshold = float(thresholds[low]) if low < len(thresholds) else np.inf
        return self._named(self._lamp_row(threshold, ceiling))

    def _lamp_row(self, threshold: float, ceiling: Widths) -> Widths:
        kept = [len(s) - int(np.searchsorted(s, threshold)) for s in self._lamp]
        # The widest allowed one of at most so many, or the narrowest there is.
        places = [
            max(int(np.searchsorted(a, k, side="right")) - 1, 0)
            for a, k in zip(self._allowed, kept, strict=True)
        ]
        widths = [a[place] for a, place in zip(self._allowed, places, strict=True)]
        return np.minimum(np.array(widths, dtype=np.int64), ceiling)

    def _rows(self, scales: Floats, steps: Floats, ceiling: Widths) -> Widths:
        """Return the widths at each scale, [scales, groups]."""
        passed = np.zeros((len(scales), len(steps) + 1), dtype=np.int64)
        np.cumsum(steps <= scales[:, None], axis=1, out=passed[:, 1:])
        places = passed[:, self._edges[1:]] - passed[:, self._edges[:-1]]
        return np.asarray(np.minimum(self._every[self._first + places], ceiling))

    def _named(self, row: Widths) -> dict[str, int]:
        return dict(zip(self.cost.names, row.tolist(), strict=True))
