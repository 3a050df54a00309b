"""Criteria: which channels of a group matter most. Higher scores stay longer.

A criterion scores the channels of one group against each other; how much each group loses is the
plan's decision. Add your own with `@criterion("name")`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.errors import AutopruneError, unknown
from autoprune.pruning.evidence import Evidence
from autoprune.pruning.groups import ChannelGroup, Grouping

Score = Callable[[Evidence, ChannelGroup], Tensor]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A named way to score the channels of a group."""

    name: str
    score: Score
    needs_data: bool
    """Whether a calibration pass is needed, or the weights alone will do."""


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, needs_data: bool = False) -> Callable[[Score], Score]:
    """Register a criterion under `name`.

    The function gets the evidence and a group, and returns a tensor of shape [channels].

    Examples
    --------
    >>> @criterion("largest_weight")
    ... def largest_weight(evidence, group):
    ...     return torch.stack([w.abs().amax(1) for w in evidence.weights(group)]).amax(0)
    >>> del CRITERIA["largest_weight"]
    """

    def register(score: Score) -> Score:
        CRITERIA[name] = Criterion(name=name, score=score, needs_data=needs_data)
        return score

    return register


def get_criterion(name: str) -> Criterion:
    """Look a criterion up; raise `AutopruneError` with the choices if there is none."""
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


def score_groups(name: str, evidence: Evidence, grouping: Grouping) -> dict[str, Tensor]:
    """Score every group by one criterion: a float tensor [channels] each, on the CPU.

    Raises
    ------
    AutopruneError
        If the criterion returns a wrong shape or a number that is not finite.
    """
    chosen = get_criterion(name)
    scores = {}
    for group in grouping.groups:
        score = chosen.score(evidence, group).detach().float().cpu()
        if score.shape != (group.channels,) or not bool(torch.isfinite(score).all()):
            raise AutopruneError(
                f"A criterion must return one finite score per channel, but {name!r} returned "
                f"{tuple(score.shape)} for the {group.channels} channels of {group.name!r}."
            )
        scores[group.name] = score
    return scores


@criterion("l1")
def l1(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Li et al. 2017, sec. 3.1: sum of absolute weights, over the coupled layers' filters."""
    return torch.stack([w.abs().sum(1) for w in evidence.weights(group)]).sum(0)


@criterion("l2")
def l2(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """He et al. 2018 (soft filter pruning): L2 norm of the filter, joint over coupled layers."""
    return torch.stack([w.square().sum(1) for w in evidence.weights(group)]).sum(0).sqrt()


@criterion("bn")
def bn(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Liu et al. 2017 (network slimming): |gamma| of BatchNorm; `l2` where there is none."""
    gammas = [s for s in group.slices if s.tensor in evidence.norms]
    if not gammas:
        return l2(evidence, group)
    return torch.stack([evidence.rows(s).abs().sum(1) for s in gammas]).sum(0)


@criterion("fpgm")
def fpgm(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """He et al. 2019, eq. 4: sum of distances to the layer's other filters (geometric median)."""
    return torch.stack([torch.cdist(w, w).sum(1) for w in evidence.weights(group)]).sum(0)


@criterion("gradient", needs_data=True)
def gradient(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Lee et al. 2019 (SNIP), eq. 6: |gradient x weight|, summed over the coupled parameters."""
    total = torch.zeros(group.channels)
    for piece in group.slices:
        if piece.role == "out" and piece.tensor in evidence.gradients:
            product = evidence.gradients[piece.tensor] * evidence.tensors[piece.tensor]
            total = total + evidence.rows(piece, product).abs().sum(1).cpu()
    return total


@criterion("taylor", needs_data=True)
def taylor(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Molchanov et al. 2019, eq. 8: (sum of gradient x weight)^2, joint over coupled members."""
    return evidence.taylor[group.name]


@criterion("fisher", needs_data=True)
def fisher(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Theis et al. 2018, eq. 6, with gates shared by all readers as in Liu et al. 2021.

    Where the readers see no batch dimension, `taylor` stands in.
    """
    if group.name not in evidence.fisher:  # its readers see no batch to tell samples apart
        return evidence.taylor[group.name]
    return evidence.fisher[group.name]


@criterion("random")
def random(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Uniform noise, the same for the same seed and group: the baseline every other must beat."""
    digest = hashlib.sha256(f"{evidence.seed}/{group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(group.channels, generator=generator)
