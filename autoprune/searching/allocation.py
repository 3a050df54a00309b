"""How a size is spread over the groups: a structured family with few numbers.

width_g = clip(s * C_g^eta * exp(beta * z_g + kappa * depth_g), lowest_g, C_g), where C_g is the
dense group's size, z_g its standardised sensitivity, depth_g in [-1, 1] its place from input to
output, and s is solved so that the plan has the wanted number of parameters. eta = 1 is a uniform
ratio, eta = 0 a constant width. The other way is one threshold on the LAMP scores of all channels
(Lee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.pruning.cost import CostModel, Widths

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers that say how a size is spread."""

    eta: float = 0.5
    beta: float = 0.0
    kappa: float = 0.0


class Allocator:
    """Solves widths for a wanted number of parameters.

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
        lowest: Mapping[str, int] | None = None,
    ) -> None:
        self.cost = cost
        self._lowest = cost.row(lowest) if lowest else np.ones(len(cost.names), dtype=np.int64)
        count = len(cost.groups)
        raw = np.array([(sensitivity or {}).get(name, 0.0) for name in cost.groups])
        depth = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
        # Blocks stay, whatever the size: they come after the groups, and nothing sways them.
        none = np.zeros(len(cost.names) - count)
        self._z: Floats = np.concatenate([(raw - raw.mean()) / (raw.std() or 1.0), none])
        self._depth: Floats = np.concatenate([depth, none])
        self._lamp: list[Floats] = [
            np.sort(np.array((lamp or {}).get(n, [np.inf]))) for n in cost.names if lamp
        ]

    @property
    def dense_params(self) -> int:
        return int(self.cost.params_of(self.cost.channels[None])[0])

    @property
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
        ceiling = self.cost.row(at_most) if at_most else self.cost.channels
        tilt: Floats = np.exp(shape.beta * self._z + shape.kappa * self._depth)
        weights: Floats = self.cost.channels.astype(np.float64) ** shape.eta * tilt
        low = float(np.log(0.5 / weights.max()))
        high = float(np.log(2 * self.cost.channels.max() / weights.min()))
        # All scales of a fine grid are costed at once; then once more between the best two.
        for _ in range(3):
            scales: Floats = np.linspace(low, high, 64).astype(np.float64)
            rows = self._rows(scales, weights, ceiling)
            fitting = np.flatnonzero(self.cost.params_of(rows) <= params)
            if not len(fitting):
                return self._named(np.minimum(self._lowest, ceiling))
            best = int(fitting[-1])
            low, high = float(scales[best]), float(scales[min(best + 1, len(scales) - 1)])
        return self._named(self._rows(np.array([low], dtype=np.float64), weights, ceiling)[0])

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
        wanted = np.array(kept, dtype=np.int64)
        return np.minimum(np.maximum(wanted, self._lowest), ceiling)

    def _rows(self, scales: Floats, weights: Floats, ceiling: Widths) -> Widths:
        wanted = np.rint(np.exp(scales)[:, None] * weights).astype(np.int64)
        return np.minimum(np.maximum(wanted, self._lowest), ceiling)

    def _named(self, row: Widths) -> dict[str, int]:
        return dict(zip(self.cost.names, row.tolist(), strict=True))
