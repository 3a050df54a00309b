"""Pruning single weights: set to zero, anywhere in a tensor or two in every four.

The tensors keep their shapes. A group is one weight tensor, its "channels" are its weights, and its
width is how many are not zero; so plans, costs and fronts are the same as for channels. What is
zero in a parent stays zero.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.evidence import Evidence
from autoprune.pruning.groups import Blocked, ChannelGroup, Grouping
from autoprune.pruning.plan import Granularity

FOUR = 4
"""Of so many weights in a row, along what a layer reads, two stay in 2:4 sparsity."""


def weight_groups(
    grouping: Grouping, granularity: Granularity, *, keep: Sequence[str] = ()
) -> Grouping:
    """Return the grouping whose groups are whole weight tensors.

    Every weight that inputs are multiplied with can lose entries, those that make the model's
    outputs included. For ``2:4`` a layer must read a multiple of four entries.

    Parameters
    ----------
    grouping
        What `find_groups` found in the model.
    keep
        Glob patterns of layers that stay dense.

    Examples
    --------
    >>> from autoprune.pruning.graph import find_groups
    >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> channels = find_groups(model, torch.zeros(1, 6))
    >>> weight_groups(channels, "weight").channels
    {'0': 48, '2': 16}
    >>> weight_groups(channels, "2:4").channels
    {'2': 16}
    """
    groups: dict[str, ChannelGroup] = {}
    weights: dict[str, str] = {}
    blocked = []
    for tensor, shape in grouping.shapes.items():
        if len(shape) < 2 or tensor not in grouping.positions:
            continue
        layer = tensor.removesuffix(".weight")
        count = torch.Size(shape).numel()
        reason = None
        pattern = next((p for p in keep if fnmatch.fnmatchcase(layer, p)), None)
        if pattern is not None:
            reason = f"kept by {pattern!r}"
        elif granularity == "2:4" and shape[1] % FOUR:
            reason = f"it reads {shape[1]} entries, which is no multiple of 4"
        if reason is not None:
            blocked.append(Blocked(layer=layer, params=count, reason=reason))
            continue
        groups[layer] = ChannelGroup(name=layer, channels=count, slices=())
        weights[layer] = tensor
    return replace(
        grouping, groups=tuple(groups.values()), blocked=tuple(blocked), blocks=(), weights=weights
    )


def weight_scores(criterion: str, evidence: Evidence, grouping: Grouping) -> dict[str, Tensor]:
    """Score every weight of every group, in the weight's shape: higher stays longer.

    ``gradient`` is |gradient x weight| (Lee et al. 2019), ``taylor`` its square (Molchanov et al.
    2019), ``hessian`` half the Hessian's diagonal times the weight squared (LeCun et al. 1990),
    ``wanda`` |weight| times the norm of what it reads (Sun et al. 2024), ``random`` noise. The
    others, which are about whole channels, come down to the magnitude.
    """
    return {
        name: _weight_score(criterion, evidence, tensor)
        for name, tensor in grouping.weights.items()
    }


def _weight_score(criterion: str, evidence: Evidence, tensor: str) -> Tensor:
    weight = evidence.tensors[tensor].float()
    if criterion in ("gradient", "taylor", "fisher") and tensor in evidence.gradients:
        product = (evidence.gradients[tensor] * weight).abs()
        return product if criterion == "gradient" else product.square()
    if criterion == "hessian" and tensor in evidence.curvature:
        return 0.5 * evidence.curvature[tensor] * weight.square()
    if criterion == "wanda" and tensor in evidence.inputs:
        norm = evidence.inputs[tensor].norm.to(weight)
        return weight.abs() * norm.reshape(1, -1, *[1] * (weight.dim() - 2))
    if criterion == "random":
        generator = torch.Generator().manual_seed(evidence.seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
    return weight.abs()


def masked(
    model: nn.Module,
    grouping: Grouping,
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    granularity: Granularity,
) -> nn.Module:
    """Return a copy of `model` in which only the best `widths` weights of each tensor are left.

    Raises
    ------
    AutopruneError
        If a width is none that the granularity allows.
    """
    small = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in grouping.weights.items():
            weight = small.get_parameter(tensor)
            # What is zero already goes first, whatever its score.
            score = scores[name].to(weight.device).masked_fill(weight == 0, -torch.inf)
            weight.mul_(_mask(score, widths[name], granularity, name))
    return small


def _mask(score: Tensor, width: int, granularity: Granularity, name: str) -> Tensor:
    count = score.numel()
    if not 1 <= width <= count:
        raise AutopruneError(
            f"Group {name!r} has {count} weights and must keep 1 to {count} of them, "
            f"but the plan keeps {width}."
        )
    if granularity == "2:4" and width < count:
        if width != count // 2:
            raise AutopruneError(
                f"Group {name!r} must keep all of its {count} weights or half of them in 2:4 "
                f"sparsity, but the plan keeps {width}."
            )
        rows = score.movedim(1, -1)
        quads = rows.reshape(-1, FOUR)
        best = quads.topk(2, dim=1).indices
        chosen = torch.zeros_like(quads).scatter_(1, best, 1.0)
        return chosen.reshape(rows.shape).movedim(-1, 1)
    order = torch.argsort(score.reshape(-1), descending=True, stable=True)
    mask = torch.zeros(count, device=score.device, dtype=torch.float32)
    mask[order[:width]] = 1.0
    return mask.reshape(score.shape)


def masks_of(model: nn.Module, grouping: Grouping) -> dict[str, Tensor]:
    """Return, by weight tensor, 1 where it is not zero and 0 where it is."""
    return {
        tensor: (model.get_parameter(tensor).detach() != 0).to(torch.float32)
        for tensor in grouping.weights.values()
    }


def count_nonzero(model: nn.Module, weights: Iterable[str]) -> int:
    """Count a model's parameters, of the tensors in `weights` those that are not zero."""
    masked_ones = set(weights)
    return sum(
        int(p.count_nonzero()) if name in masked_ones else p.numel()
        for name, p in model.named_parameters()
    )
