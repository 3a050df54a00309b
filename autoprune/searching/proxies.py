"""Proxies: how well what is known before training says what comes of it.

A proxy that ranks a large model over a small one says nothing that its size does not. So ranks are
correlated among candidates of about one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.searching.candidate import Candidate

EPOCH0, PREDICTED = "epoch0", "predicted"
"""Names of proxies: a trial's score after the cut and before any training, and, where a trial has
a user attribute of that name, what a model of earlier trials predicted for it."""
BIN_WIDTH = 1 / 3
"""Width of a bin of sizes, in decades of parameters."""
LEAST = 4
"""Fewest candidates of a bin that counts."""


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation of a proxy with the final score."""

    within_sizes: float | None
    """Mean over bins of sizes, each as heavy as it has members; None if no bin has enough."""
    pooled: float | None
    """Over all candidates, whatever their size; None if there are too few."""
    bins: int
    """How many bins of sizes counted."""
    binned: int
    """How many candidates were in them."""
    candidates: int
    """How many have the proxy."""


def epoch0(candidates: Iterable[Candidate]) -> dict[str, float]:
    """Return each trained candidate's score before its training, by name."""
    return {c.name: c.curve[0] for c in candidates if len(c.curve) > 1}


def correlations(
    candidates: Iterable[Candidate], proxies: Mapping[str, Mapping[str, float]]
) -> dict[str, Correlation]:
    """Correlate proxies with the candidates' final scores.

    Parameters
    ----------
    candidates
        Finished ones. Trials that were stopped have no final score and are not among them, which
        makes the range of scores, and so the correlation, smaller than it would be.
    proxies
        By the proxy's name, what it says of each candidate, by the candidate's name.
    """
    finished = {c.name: c for c in candidates}
    found = {}
    for proxy, values in proxies.items():
        known = [finished[name] for name in values if name in finished]
        found[proxy] = correlation(
            [c.score.params for c in known],
            [values[c.name] for c in known],
            [c.score.valid for c in known],
        )
    return found


def correlation(
    params: Sequence[int], proxy: Sequence[float], final: Sequence[float]
) -> Correlation:
    """Correlate a proxy with final scores, within sizes and over all.

    Examples
    --------
    >>> sizes, before = [10] * 4 + [1000] * 4, [4, 3, 2, 1, 8, 7, 6, 5]
    >>> found = correlation(sizes, before, [1, 2, 3, 4, 5, 6, 7, 8])
    >>> found.within_sizes, round(found.pooled, 2)
    (-1.0, 0.52)
    """
    ranked = [
        (rank, len(members))
        for members in size_bins(params)
        if (rank := spearman([proxy[i] for i in members], [final[i] for i in members])) is not None
    ]
    binned = sum(count for _, count in ranked)
    return Correlation(
        within_sizes=sum(rank * count for rank, count in ranked) / binned if binned else None,
        pooled=spearman(proxy, final),
        bins=len(ranked),
        binned=binned,
        candidates=len(proxy),
    )


def size_bins(params: Sequence[int]) -> list[list[int]]:
    """Return the positions of models of about one size, a list a bin, from the smallest up.

    A bin begins at a model and holds all that are less than `BIN_WIDTH` decades larger.

    >>> size_bins([500, 100, 150, 1000])
    [[1, 2], [0, 3]]
    """
    bins: list[list[int]] = []
    limit = 0.0
    for position in sorted(range(len(params)), key=lambda i: params[i]):
        if not bins or params[position] >= limit:
            bins.append([])
            limit = max(params[position], 1) * 10**BIN_WIDTH
        bins[-1].append(position)
    return bins


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank.

    None if there are fewer than `LEAST` pairs, or all of one side are equal or not finite.
    """
    pairs = [p for p in zip(first, second, strict=True) if all(map(math.isfinite, p))]
    if len(pairs) < LEAST:
        return None
    from scipy.stats import rankdata  # slow to import, and wanted at the end of a search

    ranks = [rankdata(side) for side in zip(*pairs, strict=True)]
    if any(np.ptp(side) == 0 for side in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])
