"""What the criteria look at: weights, and what one calibration pass says about them.

The model is run in evaluation mode, so that samples do not depend on each other and per-sample
gradients can be read off a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.pruning.curvature import hessian_diagonal
from autoprune.pruning.groups import ChannelGroup, Grouping, Slice
from autoprune.pruning.moments import Moments
from autoprune.pruning.readers import InputStats, Readers

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(kw_only=True)
class Evidence:
    """Weights of a model, and what its calibration pass gave (empty without one)."""

    tensors: dict[str, Tensor]
    norms: tuple[str, ...] = ()
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Mean gradient of the loss over the calibration set, by parameter."""
    taylor: dict[str, Tensor] = field(default_factory=dict)
    """Mean over minibatches of (sum over coupled parameters of gradient x weight)^2, [channels]."""
    fisher: dict[str, Tensor] = field(default_factory=dict)
    """Half the mean over samples of (gradient of the channel's gate)^2, [channels]; of the groups
    all of whose readers show what they read."""
    inputs: dict[str, InputStats] = field(default_factory=dict)
    """What was read, by the weight of the layer that read it; of the layers that show it."""
    moments: dict[str, Moments] = field(default_factory=dict)
    """Second moments of what was read, by the weight of the layer that read it, where they were
    asked for; of the layers that show it and do not read too much."""
    curvature: dict[str, Tensor] = field(default_factory=dict)
    """Estimated diagonal of the loss's Hessian, by coupled parameter, where it was asked for."""
    seed: int = 0

    def weights(self, group: ChannelGroup) -> list[Tensor]:
        """Return the weights that produce the group's channels, each as [channels, weights].

        Of channels that no layer produces (a model's inputs), the weights that read them.
        """
        known = [s for s in group.slices if s.tensor in self.tensors]
        weighty = [s for s in known if self.tensors[s.tensor].dim() > 1]
        produced = [s for s in weighty if s.role == "out"]
        return [self.rows(s) for s in produced or weighty or known]

    def coupled(self, group: ChannelGroup) -> list[Slice]:
        """Return the parameters that go with the group's channels: those that produce them.

        Of channels that no layer produces, those that read them.
        """
        return coupled_slices(group, self.tensors)

    def readers(self, group: ChannelGroup) -> list[tuple[Tensor, Slice, InputStats]]:
        """Return, of each reader that shows what it reads, its weights and its inputs.

        The weights are [channels, entries per channel, weights per entry]; the slice's index says
        which entries of the inputs' statistics are whose.
        """
        return [
            (self.columns(s), s, self.inputs[s.tensor])
            for s in group.slices
            if s.role == "in" and s.tensor in self.inputs and s.tensor in self.tensors
        ]

    def rows(self, piece: Slice, of: Tensor | None = None) -> Tensor:
        """Return one slice's entries (of another tensor of its shape, if given), by channel."""
        return self.columns(piece, of).flatten(1)

    def columns(self, piece: Slice, of: Tensor | None = None) -> Tensor:
        """Return one slice as [channels, entries per channel, weights per entry]."""
        tensor = self.tensors[piece.tensor] if of is None else of
        index = torch.from_numpy(piece.index.reshape(-1)).to(tensor.device)
        chosen = tensor.index_select(piece.dim, index).movedim(piece.dim, 0)
        return chosen.reshape(*piece.index.shape, -1).float()


def coupled_slices(group: ChannelGroup, parameters: Mapping[str, Tensor]) -> list[Slice]:
    """Return the slices of parameters that produce a group's channels, else that read them."""
    known = [s for s in group.slices if s.tensor in parameters]
    return [s for s in known if s.role == "out"] or known


def collect(
    model: nn.Module,
    grouping: Grouping,
    *,
    batches: Iterable[Any] = (),
    loss: Loss | None = None,
    curvature: bool = False,
    moments: bool = False,
    seed: int = 0,
) -> Evidence:
    """Gather the evidence for every criterion in one pass over `batches`.

    Parameters
    ----------
    model
        The model that `grouping` describes. Its weights are not changed.
    batches
        Calibration batches, as `loss` takes them. Without any, only weights are gathered.
    loss
        Mean loss of the model on a batch, as a scalar that can be differentiated.
    curvature
        Whether to estimate the Hessian's diagonal too, in a pass of its own that takes several
        times as long.
    moments
        Whether to gather the second moments of what the groups' readers read.
    """
    parameters = dict(model.named_parameters())
    evidence = Evidence(
        tensors={n: p.detach() for n, p in parameters.items()}, norms=grouping.norms, seed=seed
    )
    if loss is None:
        return evidence
    if curvature:
        batches = list(batches)
    was_training, required = model.training, {n: p.requires_grad for n, p in parameters.items()}
    model.eval().requires_grad_(True)
    try:
        # cuDNN cannot differentiate a recurrent layer in evaluation mode.
        watched = Readers(model, grouping, moments=moments)
        with torch.backends.cudnn.flags(enabled=False), watched as readers:
            _accumulate(model, grouping, batches, loss, evidence, readers)
        evidence.inputs, evidence.moments = readers.inputs, readers.moments
        if curvature:
            coupled = {s.tensor for g in grouping.groups for s in coupled_slices(g, parameters)}
            coupled |= set(grouping.weights.values())
            asked = {n: p for n, p in parameters.items() if n in coupled}
            evidence.curvature = hessian_diagonal(model, asked, batches, loss, seed=seed)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
        for name, parameter in parameters.items():
            parameter.requires_grad_(required[name])
    return evidence


def _accumulate(
    model: nn.Module,
    grouping: Grouping,
    batches: Iterable[Any],
    loss: Loss,
    evidence: Evidence,
    readers: Readers,
) -> None:
    parameters = dict(model.named_parameters())
    count = samples = 0
    gated = {g.name for g in grouping.groups}
    for batch in batches:
        model.zero_grad(set_to_none=True)
        readers.clear()
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        for name, gradient in gradients.items():
            _add(evidence.gradients, name, gradient.detach())
        for group in grouping.groups:
            _add(evidence.taylor, group.name, _joint(evidence, group, gradients).square())
            gate = readers.per_sample(group)
            if gate is None:
                gated.discard(group.name)
            else:
                # The loss is a mean over the batch: times its size, each sample's own gradient.
                _add(evidence.fisher, group.name, (gate * len(gate)).square().sum(0) / 2)
        count, samples = count + 1, samples + readers.samples
    evidence.fisher = {n: t / max(samples, 1) for n, t in evidence.fisher.items() if n in gated}
    for total in (evidence.gradients, evidence.taylor):
        for name in total:
            total[name] /= max(count, 1)


def _joint(evidence: Evidence, group: ChannelGroup, gradients: dict[str, Tensor]) -> Tensor:
    """Sum gradient x weight over all coupled parameters of each channel."""
    device = next(iter(evidence.tensors.values())).device
    total = torch.zeros(group.channels, device=device)
    for piece in evidence.coupled(group):
        if piece.tensor in gradients:
            product = gradients[piece.tensor] * evidence.tensors[piece.tensor]
            total += evidence.rows(piece, product).sum(1)
    return total


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in totals:
        totals[name] += value
    else:
        totals[name] = value.clone()


def top_channels(scores: Tensor, width: int) -> tuple[int, ...]:
    """Return the `width` channels with the highest scores, ascending; ties keep the lower index."""
    order: Sequence[int] = torch.argsort(scores, descending=True, stable=True)[:width].tolist()
    return tuple(sorted(order))
