"""Cutting: a really smaller copy of a model, its tensors sliced and its layers' sizes updated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.forward import shared_names
from autoprune.pruning.groups import Grouping, Kept, removed_entries
from autoprune.pruning.layers import SELECTED, fit_attributes, may_select, selects, skip


def cut(model: nn.Module, grouping: Grouping, kept: Kept) -> nn.Module:
    """Return a copy of `model` that has only the `kept` channels of each group.

    Parameters
    ----------
    model
        The model that `grouping` describes. It is not changed.
    kept
        Ascending channel indices by group, at least one each.

    Raises
    ------
    AutopruneError
        If `kept` names a group that the model does not have, keeps no channel of one, or an index
        outside it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from autoprune.pruning.graph import find_groups
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> grouping = find_groups(model, torch.zeros(1, 4))
    >>> cut(model, grouping, {"0": [0, 3]})[0]
    Linear(in_features=4, out_features=2, bias=True)
    """
    check_kept(grouping, kept)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    selected: dict[str, Tensor] = {}
    memo: dict[int, Tensor] = {}
    smaller: dict[str, Tensor] = {}
    for (name, dim), gone in removed_entries(grouping, kept).items():
        if name in state:
            full = smaller.get(name, state[name].detach())
        else:  # a layer that begins to pick its inputs
            full = torch.arange(grouping.shapes[f"{name.rpartition('.')[0]}.weight".lstrip(".")][1])
            selected[name] = full
        stays = np.setdiff1d(np.arange(full.shape[dim]), gone)
        index = torch.from_numpy(stays).to(full.device)
        smaller[name] = full.index_select(dim, index)
    for name, tensor in smaller.items():
        if name in state:  # the copy takes these instead of copying what would be thrown away
            memo[id(state[name])] = _like(state[name], tensor)
    small = copy.deepcopy(model, memo)
    for name in grouping.dropped(kept):
        skip(small.get_submodule(name))
    for name in selected:
        path, _, attribute = name.rpartition(".")
        layer = small.get_submodule(path)
        layer.register_buffer(attribute, smaller[name].to(layer.get_parameter("weight").device))
    fit_attributes(small)
    return small


def _like(old: Tensor, value: Tensor) -> Tensor:
    """Return `value` as a parameter if `old` is one."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(value, requires_grad=old.requires_grad)
    return value


def check_kept(grouping: Grouping, kept: Kept) -> None:
    """Raise unless `kept` fits `grouping`."""
    channels = grouping.channels
    odd = sorted((set(kept) ^ set(channels)) - (set(grouping.blocks) - set(kept)))
    if odd:
        raise AutopruneError(
            f"A plan must name the model's {len(channels)} channel groups and no others, "
            f"but they differ in {', '.join(map(repr, odd))}: is it another model's plan?"
        )
    for name, indices in kept.items():
        if name in grouping.blocks and not indices:
            continue
        rule = f"Group {name!r} has channels 0 to {channels[name] - 1} and must keep at least one"
        if not indices:
            raise AutopruneError(f"{rule}, but the plan keeps none.")
        if list(indices) != sorted(set(indices)):
            raise AutopruneError(f"{rule}, each once and in order, but the plan does not.")
        if indices[0] < 0 or indices[-1] >= channels[name]:
            raise AutopruneError(f"{rule}, but the plan keeps channel {indices[-1]}.")


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, dropped: Sequence[str] = ()
) -> nn.Module:
    """Return a copy of dense `model` with the shapes and values of `state`, a cut model's state.

    `dropped` names the modules that the cut model lacks.

    Raises
    ------
    AutopruneError
        If `state` does not fit; see `check_state`.
    """
    if dropped:
        model = copy.deepcopy(model)
        for name in dropped:
            _check_module(model, name)
            skip(model.get_submodule(name))
    check_state(model, state, what="weights")
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    ties = shared_names(model)
    memo: dict[int, Tensor] = {}
    for name, value in state.items():
        if name in own and ties.get(name, name) == name:
            # The copy takes these instead of copying what would be thrown away.
            memo[id(own[name])] = _like(own[name], value.to(own[name].device, own[name].dtype))
    small = copy.deepcopy(model, memo)
    for name in set(state) - set(model.state_dict()):  # a layer that picks its inputs
        path, _, attribute = name.rpartition(".")
        layer = small.get_submodule(path)
        layer.register_buffer(attribute, state[name].to(layer.get_parameter("weight").device))
    fit_attributes(small)
    return small


def check_state(
    model: nn.Module, state: Mapping[str, Tensor], *, what: str, exactly: bool = False
) -> None:
    """Raise `AutopruneError` unless `state` has `model`'s tensors, none of them larger.

    `what` names the state in the message; with `exactly`, sizes must be the model's own.
    """
    own = model.state_dict()
    extra = set() if exactly else {n for n in set(state) - set(own) if _is_selection(model, n)}
    if set(own) != set(state) - extra:
        odd = sorted(set(own) ^ (set(state) - extra))
        raise AutopruneError(
            f"The {what} must have the model's {len(own)} tensors, but differ in {odd[0]!r}"
            f"{f' and {len(odd) - 1} more' if len(odd) > 1 else ''}: is this the right model?"
        )
    for name in own:
        size, limit = tuple(state[name].shape), tuple(own[name].shape)
        fits = len(size) == len(limit) and all(v <= s for v, s in zip(size, limit, strict=True))
        if not fits or (exactly and size != limit):
            raise AutopruneError(
                f"Tensor {name!r} of the {what} must {'be' if exactly else 'fit into'} the "
                f"model's {limit}, but is {size}: is this the right model?"
            )
        kinds = state[name].dtype, own[name].dtype
        if not torch.can_cast(*kinds):  # as from complex to real numbers
            raise AutopruneError(
                f"Tensor {name!r} of the {what} must be of the model's type, {kinds[1]}, or of one "
                f"that can become it, but is {kinds[0]}: is this the right model?"
            )


def _check_module(model: nn.Module, name: str) -> None:
    if name not in dict(model.named_modules()):
        raise AutopruneError(
            f"A dropped block must be a module of the model, but {name!r} is none: "
            f"is this the right model?"
        )


def _is_selection(model: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    layer = dict(model.named_modules()).get(path)
    return attribute == SELECTED and layer is not None and (may_select(layer) or selects(layer))
