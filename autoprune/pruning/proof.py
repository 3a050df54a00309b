"""Proving groups on the model itself: cut them, ignore them, compare."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from autoprune.errors import first_line
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import call, tensors_of, without_fast_path
from autoprune.pruning.groups import ChannelGroup, Grouping, Kept
from autoprune.pruning.layers import fit_attributes, over_channels, skip

RELATIVE_TOLERANCE = 1e-4
FAINT = 1e-2
"""Outputs of less are compared as if they were so large: they are differences of larger ones."""
SLIGHT = 1e-3
"""What parameters below this scale is hardly seen in the outputs."""
TRIES = 3
DOES_NOT_TRAIN = "it does not train without them"


class Proof:
    """Compares cut models with copies whose readers ignore the same channels.

    Several plans are compared. In each, about half of the groups keep few of their channels and
    the others most, neighbours differently, so that nothing holds because two groups happen to be
    as wide. Where a normalisation runs over the channels themselves (LayerNorm, RMSNorm, GroupNorm
    of one group), the copy normalises over those that stay: what the cut model must do. All of it
    is done with a copy of the model in which no parameter is as good as zero, as the last ones of
    residual blocks are at first: what they scale would not be seen. Cut models must run as in
    training, too, if the model does.
    """

    def __init__(self, model: nn.Module, probe: Any) -> None:
        self._probe = probe
        lively = _lively(model)
        finite = all(bool(t.isfinite().all()) for t in _outputs(lively, probe))
        self._model = lively if finite else model
        self._trains = _fails_in_training(copy.deepcopy(model), probe) is None

    def faults(self, groups: Sequence[ChannelGroup], grouping: Grouping) -> dict[str, str]:
        """Return, by name, what is wrong with groups that cannot be cut; the others can, together.

        Groups are tried together, and halved where that fails; those that hold by themselves once
        more together.
        """
        plans = [_plan(groups, number) for number in range(TRIES)]

        def fault(some: Sequence[ChannelGroup]) -> str | None:
            alone = Grouping(
                groups=tuple(some), blocked=(), shapes=grouping.shapes, positions={}, products=()
            )
            kept = [{g.name: plan[g.name] for g in some} for plan in plans]
            return next((why for k in kept if (why := self._fault_of(alone, k))), None)

        def apart(some: Sequence[ChannelGroup], why: str) -> dict[str, str]:
            """Return what is wrong with each of some groups that fail together."""
            if len(some) == 1:
                return {some[0].name: why}
            middle, wrong = len(some) // 2, dict[str, str]()
            for half in (some[:middle], some[middle:]):
                if (worse := fault(half)) is not None:
                    wrong |= apart(half, worse)
            return wrong

        whole = fault(groups) if groups else None
        if whole is None:
            return {}
        found = apart(groups, whole)
        sound = [g for g in groups if g.name not in found]
        while sound and (why := fault(sound)) is not None:
            holds, fails = 0, len(sound)  # so many of the first hold together, so many do not
            while fails - holds > 1:
                middle = (holds + fails) // 2
                if fault(sound[:middle]) is None:
                    holds = middle
                else:
                    fails = middle
            found[sound.pop(fails - 1).name] = why
        return found

    def _fault_of(self, alone: Grouping, kept: Kept) -> str | None:
        gone = {g.name: sorted(set(range(g.channels)) - set(kept[g.name])) for g in alone.groups}
        try:
            cut_model = cut(self._model, alone, kept)
            smaller = _outputs(cut_model, self._probe)
            dense = _outputs(deafened(self._model, alone, gone), self._probe)
        except Exception as error:
            return f"the model does not run without them ({first_line(error)})"
        if [t.shape for t in smaller] != [t.shape for t in dense]:
            return "its outputs are the model's outputs"
        if not all(map(_agree, smaller, dense)):
            return (
                "an operation mixes its channels (softmax, mean or reshape across them), "
                "so that cutting is not the same as ignoring them"
            )
        why = _fails_in_training(cut_model, self._probe) if self._trains else None
        return None if why is None else f"{DOES_NOT_TRAIN} ({why})"


def _plan(groups: Sequence[ChannelGroup], number: int) -> dict[str, list[int]]:
    """Return which channels each group keeps in one of the plans that are compared."""
    return {
        g.name: _some(g.channels, few=bool(place >> number & 1), seed=f"{g.name}/{number}")
        for place, g in enumerate(groups)
    }


def _some(channels: int, *, few: bool, seed: str) -> list[int]:
    """Return a third of the channels or less, or two thirds or more, but neither none nor all."""
    chance = random.Random(seed)
    third = max(1, channels // 3)
    count = chance.randint(1, third)
    return sorted(chance.sample(range(channels), count if few else max(1, channels - count)))


def _agree(small: Tensor, large: Tensor) -> bool:
    if not large.numel():
        return True
    if large.is_complex():
        small, large = torch.view_as_real(small), torch.view_as_real(large)
    if not large.is_floating_point():
        return torch.equal(small, large)
    tolerance = max(RELATIVE_TOLERANCE, 4 * torch.finfo(large.dtype).eps)
    scale = max(float(large.abs().max()), FAINT)
    return torch.allclose(small.double(), large.double(), rtol=0, atol=tolerance * scale)


def _lively(model: nn.Module) -> nn.Module:
    """Copy `model`, with noise in place of parameters that are next to nothing."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        slight = parameter.is_floating_point() and parameter.numel()
        if slight and float(parameter.detach().abs().max()) < SLIGHT:
            size = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            value = size * torch.randn(parameter.shape, generator=noise)
            held[id(parameter)] = nn.Parameter(
                value.to(parameter), requires_grad=parameter.requires_grad
            )
    return copy.deepcopy(model, held)


def in_training(model: nn.Module) -> nn.Module:
    """Put `model` into training mode, but for norms, which may want more than one sample."""
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
    return model


def _fails_in_training(model: nn.Module, probe: Any) -> str | None:
    """Return what goes wrong when `model` runs as in training, which may change it; or None."""
    try:
        _outputs(in_training(model), probe)
    except Exception as error:
        return first_line(error)
    return None


def droppable(model: nn.Module, blocks: Sequence[str], probe: Any) -> list[str]:
    """Return the blocks without which the model runs and answers in the same shape."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shapes = [t.shape for t in _outputs(model, probe)]
    found = []
    for block in blocks:
        without = copy.deepcopy(model, dict(held))  # shares its tensors
        skip(without.get_submodule(block))
        try:
            if [t.shape for t in _outputs(without, probe)] == shapes:
                found.append(block)
        except Exception:  # whatever asks for the block: it stays
            continue
    return found


def _outputs(model: nn.Module, probe: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), without_fast_path():
        torch.manual_seed(0)
        return tensors_of(call(model, probe))


def deafened(model: nn.Module, grouping: Grouping, gone: Kept) -> nn.Module:
    """Copy `model` with the weights that read the channels that are `gone` set to zero."""
    deaf = copy.deepcopy(model)
    tensors = dict(deaf.named_parameters())
    norms: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for group in grouping.groups:
            for piece in group.slices:
                index = torch.from_numpy(piece.entries(gone[group.name]))
                if piece.role == "in":
                    tensors[piece.tensor].index_fill_(piece.dim, index, 0.0)
                path, _, attribute = piece.tensor.rpartition(".")
                if attribute == "weight" and over_channels(deaf.get_submodule(path)):
                    norms.setdefault(path, []).append(index)
    for path, indices in norms.items():
        deaf.set_submodule(path, _KeptNorm(deaf.get_submodule(path), torch.cat(indices)))
    return deaf


class _KeptNorm(nn.Module):
    """A norm over some of its channels; the others come out as zero."""

    def __init__(self, norm: nn.Module, gone: Tensor) -> None:
        super().__init__()
        weight = norm.get_parameter("weight")
        stays = torch.ones(weight.shape[0], dtype=torch.bool)
        stays[gone] = False
        self._kept = stays.nonzero()[:, 0]
        self._dim = 1 if isinstance(norm, nn.GroupNorm) else -1
        self._norm = copy.deepcopy(norm)
        for name, parameter in norm.named_parameters(recurse=False):
            setattr(self._norm, name, nn.Parameter(parameter.detach()[self._kept]))
        fit_attributes(self._norm)

    def forward(self, x: Tensor) -> Tensor:
        part = self._norm(x.index_select(self._dim, self._kept))
        return torch.zeros_like(x).index_copy(self._dim, self._kept, part)
