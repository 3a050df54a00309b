"""What the criteria look at: weights, and what one calibration pass says about them.

The model is run in evaluation mode, so that samples do not depend on each other and per-sample
gradients can be read off a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.pruning.forward import tensors_of
from autoprune.pruning.groups import ChannelGroup, Grouping, Slice


@dataclass(kw_only=True)
class Evidence:
    """Weights of a model, and per-group sums from its calibration pass (empty without one)."""

    tensors: dict[str, Tensor]
    norms: tuple[str, ...] = ()
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Mean gradient of the loss over the calibration set, by parameter."""
    taylor: dict[str, Tensor] = field(default_factory=dict)
    """Mean over minibatches of (sum over coupled parameters of gradient x weight)^2, [channels]."""
    fisher: dict[str, Tensor] = field(default_factory=dict)
    """Half the mean over samples of (gradient of the channel's gate)^2, [channels]."""
    seed: int = 0

    def weights(self, group: ChannelGroup) -> list[Tensor]:
        """Return the weights that produce the group's channels, each as [channels, weights]."""
        produced = [s for s in group.slices if s.role == "out" and s.tensor in self.tensors]
        return [self.rows(s) for s in produced if self.tensors[s.tensor].dim() > 1]

    def rows(self, piece: Slice, of: Tensor | None = None) -> Tensor:
        """Return one slice's entries (of another tensor of its shape, if given), by channel."""
        tensor = self.tensors[piece.tensor] if of is None else of
        index = torch.from_numpy(piece.index.reshape(-1)).to(tensor.device)
        chosen = tensor.index_select(piece.dim, index).movedim(piece.dim, 0)
        return chosen.reshape(len(piece.index), -1).float()


def collect(
    model: nn.Module,
    grouping: Grouping,
    *,
    batches: Iterable[Any] = (),
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
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
    """
    parameters = dict(model.named_parameters())
    evidence = Evidence(
        tensors={n: p.detach() for n, p in parameters.items()}, norms=grouping.norms, seed=seed
    )
    if loss is None:
        return evidence
    was_training, required = model.training, {n: p.requires_grad for n, p in parameters.items()}
    model.eval().requires_grad_(True)
    try:
        # cuDNN cannot differentiate a recurrent layer in evaluation mode.
        with torch.backends.cudnn.flags(enabled=False), _Gates(model, grouping) as gates:
            count = _accumulate(model, grouping, batches, loss, evidence, gates)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
        for name, parameter in parameters.items():
            parameter.requires_grad_(required[name])
    for total in (evidence.gradients, evidence.taylor):
        for name in total:
            total[name] /= max(count, 1)
    return evidence


def _accumulate(
    model: nn.Module,
    grouping: Grouping,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    evidence: Evidence,
    gates: _Gates,
) -> int:
    parameters = dict(model.named_parameters())
    count = samples = 0
    for batch in batches:
        model.zero_grad(set_to_none=True)
        gates.clear()
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        for name, gradient in gradients.items():
            _add(evidence.gradients, name, gradient.detach())
        for group in grouping.groups:
            _add(evidence.taylor, group.name, _joint(evidence, group, gradients).square())
            gate = gates.per_sample(group)
            if gate is not None:
                # The loss is a mean over the batch: times its size, each sample's own gradient.
                _add(evidence.fisher, group.name, (gate * len(gate)).square().sum(0) / 2)
        count, samples = count + 1, samples + gates.samples
    for name in evidence.fisher:
        evidence.fisher[name] /= max(samples, 1)
    return count


def _joint(evidence: Evidence, group: ChannelGroup, gradients: dict[str, Tensor]) -> Tensor:
    """Sum gradient x weight over all coupled parameters of each channel."""
    device = next(iter(evidence.tensors.values())).device
    total = torch.zeros(group.channels, device=device)
    for piece in group.slices:
        if piece.role == "out" and piece.tensor in gradients:
            product = gradients[piece.tensor] * evidence.tensors[piece.tensor]
            total += evidence.rows(piece, product).sum(1)
    return total


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in totals:
        totals[name] += value
    else:
        totals[name] = value.clone()


class _Gates:
    """Reads the gradient of a gate (a factor of 1) on every channel at the inputs of its readers.

    Liu et al. 2021 (Group Fisher): the mask of a channel is shared by all layers that read it, so
    its gradient for a sample is the sum, over readers and positions, of input x input's gradient.
    """

    def __init__(self, model: nn.Module, grouping: Grouping) -> None:
        self._readers: dict[str, list[Slice]] = {
            g.name: [s for s in g.slices if s.role == "in"] for g in grouping.groups
        }
        self._model = model
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._products: dict[str, Tensor] = {}
        self.samples = 0

    def __enter__(self) -> _Gates:
        names = {s.tensor.rpartition(".")[0] for readers in self._readers.values() for s in readers}
        for name in names:
            layer = self._model.get_submodule(name)
            self._hooks.append(layer.register_forward_pre_hook(self._watch(name), with_kwargs=True))
        self._hooks.append(
            self._model.register_forward_pre_hook(self._count_samples, with_kwargs=True)
        )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def clear(self) -> None:
        self._products.clear()

    def _count_samples(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = tensors_of((args, kwargs))
        self.samples = int(tensors[0].shape[0]) if tensors else 1

    def _watch(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs["input"]
            if not given.shape or given.shape[0] % self.samples:
                return None  # not one row or more per sample: no gate to read
            # A node of its own: an input shared by two readers must not see both gradients.
            own: Tensor = given.view_as(given)
            channel_dim = own.dim() - 1 if isinstance(layer, nn.Linear) else 1

            def after(gradient: Tensor) -> None:
                product = (own.detach() * gradient).movedim(channel_dim, -1)
                rows = product.reshape(self.samples, -1, product.shape[-1]).sum(1)
                self._products[name] = self._products.get(name, 0) + rows

            if own.requires_grad:
                own.register_hook(after)  # type: ignore[no-untyped-call]
            return ((own, *args[1:]), kwargs) if args else ((), {**kwargs, "input": own})

        return before

    def per_sample(self, group: ChannelGroup) -> Tensor | None:
        """Return the gates' gradients for the last batch, [samples, channels]."""
        total: Tensor | None = None
        for piece in self._readers[group.name]:
            product = self._products.get(piece.tensor.rpartition(".")[0])
            if product is None:
                continue
            index = torch.from_numpy(piece.index).to(product.device)
            gate = product[:, index].sum(-1)
            total = gate if total is None else total + gate
        return total


def top_channels(scores: Tensor, width: int) -> tuple[int, ...]:
    """Return the `width` channels with the highest scores, ascending; ties keep the lower index."""
    order: Sequence[int] = torch.argsort(scores, descending=True, stable=True)[:width].tolist()
    return tuple(sorted(order))
