"""How deep a model of a size is to be: small ones do better shallow.

A network's depth and its widths shrink together (compound scaling: Tan and Le 2019). Only residual
blocks can go; the least harmful one goes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

POWER = 0.4
"""How depth follows the size: as this power of the share of the parameters, blocks stay."""


class Depth:
    """Which blocks models of a size do without.

    Parameters
    ----------
    blocks
        Those that may be dropped.
    losses
        By block, how much the dense model's loss rises without it; what is left out counts as 0.

    Examples
    --------
    >>> depth = Depth(["a.block", "b.block"], {"a.block": 0.5, "b.block": 0.1})
    >>> [depth.dropped(share) for share in (0.6, 0.2, 0.02)]
    [(), ('b.block',), ('b.block', 'a.block')]
    """

    def __init__(self, blocks: Sequence[str], losses: Mapping[str, float]) -> None:
        self._order = sorted(blocks, key=lambda block: losses.get(block, 0.0))

    def dropped(self, share: float) -> tuple[str, ...]:
        """Return the blocks that a model of a `share` of the dense parameters does without."""
        stay = round(len(self._order) * share**POWER)
        return tuple(self._order[: len(self._order) - stay])
