"""Cutting: a really smaller copy of a model, its tensors sliced and its layers' sizes updated."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.errors import AutopruneError
from autoprune.pruning.forward import shared_names
from autoprune.pruning.groups import Grouping, Kept, removed_entries


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
    small = copy.deepcopy(model)
    state = dict(small.named_parameters()) | dict(small.named_buffers())
    by_tensor: dict[str, Tensor] = {}
    for (name, dim), gone in removed_entries(grouping, kept).items():
        tensor = by_tensor.get(name, state[name].detach())
        stays = np.setdiff1d(np.arange(tensor.shape[dim]), gone)
        index = torch.from_numpy(stays).to(tensor.device)
        by_tensor[name] = tensor.index_select(dim, index)
    for name, tensor in by_tensor.items():
        set_tensor(small, name, tensor)
    fit_attributes(small)
    return small


def check_kept(grouping: Grouping, kept: Kept) -> None:
    """Raise unless `kept` fits `grouping`."""
    channels = grouping.channels
    if set(kept) != set(channels):
        odd = sorted(set(kept) ^ set(channels))
        raise AutopruneError(
            f"A plan must name the model's {len(channels)} channel groups and no others, "
            f"but they differ in {', '.join(map(repr, odd))}: is it another model's plan?"
        )
    for name, indices in kept.items():
        rule = f"Group {name!r} has channels 0 to {channels[name] - 1} and must keep at least one"
        if not indices:
            raise AutopruneError(f"{rule}, but the plan keeps none.")
        if list(indices) != sorted(set(indices)):
            raise AutopruneError(f"{rule}, each once and in order, but the plan does not.")
        if indices[0] < 0 or indices[-1] >= channels[name]:
            raise AutopruneError(f"{rule}, but the plan keeps channel {indices[-1]}.")


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` in the place of the parameter or buffer `name`, whatever its shape."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, attribute)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value.contiguous().clone(), requires_grad=old.requires_grad)
    setattr(owner, attribute, value)


def fit_attributes(model: nn.Module) -> None:
    """Make each layer's size attributes agree with the shapes of its tensors."""
    for module in model.modules():
        if isinstance(module, _ConvNd):
            _fit_convolution(module)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase):
            for tensor in (module.weight, module.running_mean):
                if tensor is not None:
                    module.num_features = tensor.shape[0]
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.GroupNorm) and module.weight is not None:
            if module.num_groups == module.num_channels:
                module.num_groups = module.weight.shape[0]
            module.num_channels = module.weight.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.shape[0]
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape


def _fit_convolution(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels:
        multiplier = module.out_channels // module.in_channels
        transposed = isinstance(module, _ConvTransposeNd)
        module.in_channels = module.groups = first if transposed else first // multiplier
        module.out_channels = module.in_channels * multiplier
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of dense `model` with the shapes and values of `state`, a cut model's state.

    Raises
    ------
    AutopruneError
        If `state` does not fit; see `check_state`.
    """
    check_state(model, state, what="weights")
    small = copy.deepcopy(model)
    own = small.state_dict()
    ties = shared_names(small)
    for name, value in state.items():
        if ties.get(name, name) == name:
            set_tensor(small, name, value.to(own[name].device, own[name].dtype))
    for name, first in ties.items():  # what was one parameter stays one
        path, _, attribute = name.rpartition(".")
        setattr(small.get_submodule(path), attribute, small.get_parameter(first))
    fit_attributes(small)
    return small


def check_state(
    model: nn.Module, state: Mapping[str, Tensor], *, what: str, exactly: bool = False
) -> None:
    """Raise `AutopruneError` unless `state` has the tensors of `model`, none of them larger.

    `what` names the state in the message; with `exactly`, sizes must be the model's own.
    """
    own = model.state_dict()
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))
        raise AutopruneError(
            f"The {what} must have the model's {len(own)} tensors, but differ in {odd[0]!r}"
            f"{f' and {len(odd) - 1} more' if len(odd) > 1 else ''}: is this the right model?"
        )
    for name, value in state.items():
        size, limit = tuple(value.shape), tuple(own[name].shape)
        fits = len(size) == len(limit) and all(v <= s for v, s in zip(size, limit, strict=True))
        if not fits or (exactly and size != limit):
            raise AutopruneError(
                f"Tensor {name!r} of the {what} must {'be' if exactly else 'fit into'} the "
                f"model's {limit}, but is {size}: is this the right model?"
            )
