"""Which widths a group may have: the multiples of a number, and the dense width."""

from __future__ import annotations

import numpy as np

from autoprune.pruning.cost import Widths


def allowed_widths(channels: int, *, lowest: int = 1, round_to: int = 1) -> Widths:
    """Return the widths that a group of `channels` may have, ascending; the last one is dense.

    These are the multiples of `round_to` from `lowest` on, and all channels. A group that is
    narrower than one of the two keeps all it has.

    >>> allowed_widths(20, lowest=5, round_to=8).tolist()
    [8, 16, 20]
    >>> allowed_widths(6, round_to=8).tolist()
    [6]
    """
    first = max(-(-lowest // round_to), 1) * round_to
    return np.append(np.arange(first, channels, round_to, dtype=np.int64), channels)


def boundaries(allowed: Widths) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the numbers halfway between neighbours of `allowed`."""
    return (allowed[:-1] + allowed[1:]) / 2


def nearest_width(wanted: float, allowed: Widths) -> int:
    """Return the member of `allowed` that is nearest to `wanted`, of two the smaller one.

    >>> nearest_width(13.0, allowed_widths(20, round_to=8))
    16
    """
    return int(allowed[np.searchsorted(boundaries(allowed), wanted)])
