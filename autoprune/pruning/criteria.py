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
from autoprune.pruning.obs import Reader, elimination, read_entries
from autoprune.pruning.readers import InputStats

Score = Callable[[Evidence, ChannelGroup], Tensor]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A named way to score the channels of a group."""

    name: str
    score: Score
    needs_data: bool
    """Whether a calibration pass is needed, or the weights alone will do."""
    needs_curvature: bool = False
    """Whether that pass must estimate the loss's curvature, too, which takes long."""
    needs_moments: bool = False
    """Whether it must gather the second moments of what layers read, which takes long, too."""
    compensates: bool = False
    """Whether what removed channels gave on average goes into their readers' biases."""

    @property
    def extras(self) -> tuple[bool, bool]:
        """What the calibration pass does only when asked: curvature, moments."""
        return self.needs_curvature, self.needs_moments


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str,
    *,
    needs_data: bool = False,
    needs_curvature: bool = False,
    needs_moments: bool = False,
    compensates: bool = False,
) -> Callable[[Score], Score]:
    """Register a criterion under `name`.

    The function gets the evidence and a group, and returns a tensor of shape [channels]. With
    `needs_data` the evidence holds what a calibration pass gave, with `needs_curvature` also the
    diagonal of the loss's Hessian, with `needs_moments` the second moments of what layers read.
    With `compensates`, what the removed channels gave on average is added to the biases of the
    layers that read them.

    Examples
    --------
    >>> @criterion("largest_weight")
    ... def largest_weight(evidence, group):
    ...     return torch.stack([w.abs().amax(1) for w in evidence.weights(group)]).amax(0)
    >>> del CRITERIA["largest_weight"]
    """

    def register(score: Score) -> Score:
        CRITERIA[name] = Criterion(
            name=name,
            score=score,
            needs_data=needs_data or needs_curvature or needs_moments or compensates,
            needs_curvature=needs_curvature,
            needs_moments=needs_moments,
            compensates=compensates,
        )
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
        if not group.slices:  # its block was dropped
            scores[group.name] = torch.zeros(group.channels)
            continue
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


@criterion("lamp")
def lamp(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Lee et al. 2021 (LAMP), of channels: |w|^2 over the sum of |w|^2 of those at least as large.

    Within a group the order is that of `l2`. The scores of different groups can be compared, which
    is what they are for: `Allocator.lamp_widths` cuts all groups at one score.
    """
    squares = torch.stack([w.cpu().double().square().sum(1) for w in evidence.weights(group)])
    squares = squares.sum(0)
    ordered, order = squares.sort(descending=True)
    at_least = ordered.cumsum(0)
    # Of equals, each counts all: the last place that a value has in the order.
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1
    score = torch.empty_like(squares)
    score[order] = ordered / at_least[last].clamp_min(torch.finfo(torch.float64).tiny)
    return score


@criterion("gradient", needs_data=True)
def gradient(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Lee et al. 2019 (SNIP), eq. 6: |gradient x weight|, summed over the coupled parameters."""
    total = torch.zeros(group.channels)
    for piece in evidence.coupled(group):
        if piece.tensor in evidence.gradients:
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

    Where a reader hides what it reads or sees no batch dimension, `taylor` stands in.
    """
    return evidence.fisher.get(group.name, evidence.taylor[group.name])


@criterion("hessian", needs_curvature=True)
def hessian(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """LeCun et al. 1990 (Optimal Brain Damage): sum of h w^2 / 2 over the coupled parameters.

    h is the diagonal of the loss's true Hessian by Hutchinson's estimate, with
    `curvature.PROBES` random signs for each calibration batch. It may be negative: away from a
    minimum, the model may gain by losing a channel. Where the model cannot be differentiated
    twice, `taylor` stands in.
    """
    if not evidence.curvature:
        return evidence.taylor[group.name]
    total = torch.zeros(group.channels)
    for piece in evidence.coupled(group):
        saliency = evidence.curvature[piece.tensor] * evidence.tensors[piece.tensor].square() / 2
        total = total + evidence.rows(piece, saliency).sum(1).cpu()
    return total


@criterion("wanda", needs_data=True)
def wanda(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Sun et al. 2024, eq. 1, summed over each channel's weights in the layers that read it.

    score_c = sum over readers, and over the entries e of c in their input, of
    (sum over outputs and kernel positions of |W_e|) x |X_e|, where |X_e| is the L2 norm of the
    entry over all calibration samples and positions. Readers that hide what they read are left
    out; where all do, `l2` stands in.
    """
    return _over_readers(
        evidence,
        group,
        lambda weights, inputs, index: weights.abs().sum(2) * inputs.norm[index],
    )


@criterion("flap", needs_data=True, compensates=True)
def flap(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """An et al. 2024 (FLAP, WIFV): the input's variance x the squared norm of what reads it.

    Summed over the channel's entries and readers; the variance is over calibration samples and
    positions. What a removed channel gave on average goes into the readers' biases: see
    `compensate`. Readers that hide what they read are left out; where all do, `l2` stands in.
    """
    return _over_readers(
        evidence,
        group,
        lambda weights, inputs, index: weights.square().sum(2) * inputs.variance[index],
    )


APOZ_TIE = 1e-4
"""Channels whose shares of zeros differ by less are told apart by their norms."""


@criterion("apoz", needs_data=True)
def apoz(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Hu et al. 2016, eq. 1: 1 - APoZ, the average percentage of zeros among a channel's values.

    The values are those that readers see, averaged over the channel's entries and readers. Where
    nothing is ever zero (GELU, tanh) all channels would tie, so 1e-4 x (`l2` / the group's largest)
    is added. Readers that hide what they read are left out; where all do, `l2` stands in.
    """
    readers = len(evidence.readers(group))
    if not readers:
        return l2(evidence, group)
    active = _over_readers(
        evidence, group, lambda weights, inputs, index: inputs.active[index] / index.shape[1]
    )
    norms = l2(evidence, group).cpu().double()
    tie = APOZ_TIE * norms / norms.max().clamp_min(torch.finfo(torch.float64).tiny)
    return active.cpu().double() / readers + tie


@criterion("obs", needs_moments=True, compensates=True)
def obs(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Hassibi & Stork 1993 (Optimal Brain Surgeon), of channels: by how late each is eliminated.

    Channels are taken away one after the other, each time the one without which all that read it,
    best adjusted, err least (`elimination`). So of channels that say the same, all but one go
    early. score = place in that order / channels + share of the whole error that is made once the
    channel is gone. What a removed channel gave on average goes into the readers' biases, see
    `compensate`; the rest of the adjustment is what `reconstruct` does.

    Readers that hide what they read, or read more than `moments.MOST_ENTRIES`, are left out; where
    all do, `l2` stands in.
    """
    readers = [
        Reader.of(evidence.tensors[tensor], dim, index, evidence.moments[tensor])
        for (tensor, dim), index in read_entries(group).items()
        if tensor in evidence.moments and tensor in evidence.tensors
    ]
    if not readers:
        return l2(evidence, group)
    order, errors = elimination(readers)
    made = errors.cumsum(0)
    score = torch.empty_like(made)
    places = torch.arange(1, len(order) + 1, dtype=made.dtype) / len(order)
    score[order] = places + made / made[-1].clamp_min(torch.finfo(made.dtype).tiny)
    return score


def _over_readers(
    evidence: Evidence,
    group: ChannelGroup,
    value: Callable[[Tensor, InputStats, Tensor], Tensor],
) -> Tensor:
    """Sum a value of each entry, [channels, entries], over entries and readers; else `l2`.

    `value` gets a reader's weights as [channels, entries, weights per entry], the statistics of
    its inputs and the entries' places there.
    """
    totals = [
        value(weights, inputs, torch.from_numpy(piece.index).to(weights.device)).sum(1)
        for weights, piece, inputs in evidence.readers(group)
    ]
    return torch.stack(totals).sum(0) if totals else l2(evidence, group)


@criterion("random")
def random(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Uniform noise, the same for the same seed and group: the baseline every other must beat."""
    digest = hashlib.sha256(f"{evidence.seed}/{group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(group.channels, generator=generator)
