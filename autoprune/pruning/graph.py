"""Finding channel groups: torch-pruning traces which layers are coupled, and we check what it says.

This is the only module that knows torch-pruning. It takes from it nothing but the index maps of
coupled layers. Each group is then proved on the model itself: cut it, zero it, compare. What does
not hold is blocked with its reason, never guessed.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.cost import weight_positions
from autoprune.pruning.forward import call, map_tensors, randomised, shared_names, tensors_of
from autoprune.pruning.groups import Blocked, ChannelGroup, Grouping, Slice
from autoprune.pruning.proof import UnprunableError, prove

Role = Literal["out", "in"]


def find_groups(model: nn.Module, example: Any, *, keep: Sequence[str] = ()) -> Grouping:
    """Find the channel groups of `model`, and say for every other layer why it stays dense.

    Parameters
    ----------
    model
        Any module; it is not changed.
    example
        Inputs the model can be called with: a tensor, a tuple (positional) or a dict (by keyword).
    keep
        Glob patterns of layer names that must never lose channels, e.g. ``["head", "stem.*"]``.

    Raises
    ------
    AutopruneError
        If the example does not fit the model, a pattern matches no layer, or tracing fails.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> grouping = find_groups(model, torch.zeros(1, 4))
    >>> grouping.channels, grouping.blocked[0].reason
    ({'0': 8}, "its outputs are the model's outputs")
    """
    try:
        model = copy.deepcopy(model).eval().requires_grad_(True)
    except Exception as error:
        raise AutopruneError(
            f"The model must be open to copying, but copying it raised {first_line(error)}. "
            f"Fold old-style hooks such as `weight_norm` in first (`remove_weight_norm`)."
        ) from error
    check_example(model, example)
    kept_layers = _matching_layers(model, keep)
    positions = weight_positions(model, example)
    probe = map_tensors(lambda t: t.detach(), randomised(example))

    groups: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    for traced in _trace(model, example):
        try:
            pattern = next((kept_layers[n] for n in traced.layers if n in kept_layers), None)
            if pattern is not None:
                raise UnprunableError(f"kept by {pattern!r}")
            group = traced.as_group(model)
            prove(model, group, probe)
            groups.append(group)
        except UnprunableError as error:
            for layer in traced.layers:
                reasons.setdefault(layer, str(error))
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    groups.sort(key=lambda g: order[g.name])
    return Grouping(
        groups=tuple(groups),
        blocked=tuple(_blocked_layers(model, groups, reasons)),
        shapes={name: tuple(p.shape) for name, p in model.named_parameters()},
        positions=positions,
        norms=tuple(
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, _NormBase) and module.weight is not None
        ),
    )


def check_example(model: nn.Module, example: Any) -> list[Tensor]:
    """Run `model` on `example` and return its output tensors.

    Raises
    ------
    AutopruneError
        If the call fails or returns no tensor.
    """
    try:
        with torch.no_grad():
            outputs = tensors_of(call(model, example))
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(example)) or "no tensor"
        raise AutopruneError(
            f"The example input must be what the model is called with, but with {shapes} "
            f"it raised {first_line(error)}. Mend `example` in the study file."
        ) from error
    if not outputs:
        raise AutopruneError(
            "The model must return tensors, but called with the example it does not."
        )
    return outputs


def _matching_layers(model: nn.Module, keep: Sequence[str]) -> dict[str, str]:
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, str] = {}
    for pattern in keep:
        hits = [n for n in names if fnmatch.fnmatchcase(n, pattern)]
        if not hits:
            raise AutopruneError(
                f"Each pattern in `keep` must match a layer, but {pattern!r} matches none of "
                f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
            )
        found.update(dict.fromkeys(hits, pattern))
    return found


# --- tracing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """One layer's part in a traced group: which entries of it belong to which channel."""

    name: str
    module: nn.Module | nn.Parameter
    role: Role
    entries: list[int]
    channels: list[int]
    dim: int


@dataclass(frozen=True)
class _Traced:
    channels: int
    members: list[_Member]

    @property
    def layers(self) -> list[str]:
        """Names of the layers that produce the group's channels."""
        return [m.name for m in self.members if m.role == "out" and m.name]

    def as_group(self, model: nn.Module) -> ChannelGroup:
        if self.channels < 2:
            raise UnprunableError("it has a single channel")
        ties = shared_names(model)
        tied = ties | {first: name for name, first in ties.items()}
        slices: list[Slice] = []
        for member in self.members:
            index = _index_table(member, self.channels)
            for tensor, dim in _tensor_dims(member):
                if tensor in tied:
                    raise UnprunableError(f"{tensor!r} is tied to {tied[tensor]!r}")
                slices.append(Slice(tensor=tensor, dim=dim, role=member.role, index=index))
        roots = [m.name for m in self.members if _is_root(m)]
        order = [name for name, _ in model.named_modules() if name in roots]
        return ChannelGroup(name=order[0], channels=self.channels, slices=tuple(slices))


def _trace(model: nn.Module, example: Any) -> Iterator[_Traced]:
    def forward(traced: nn.Module, inputs: Any) -> list[Tensor]:
        outputs = tensors_of(call(traced, inputs))
        return [t for t in outputs if t.requires_grad]

    graph = torch_pruning.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(model, example, forward_fn=forward, verbose=False)
            groups = list(graph.get_all_groups())
    except Exception as error:
        raise AutopruneError(
            f"The model's layers must be traceable through autograd, but tracing raised "
            f"{first_line(error)}."
        ) from error
    names = {id(m): name for name, m in model.named_modules()}
    names |= {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        members = []
        for item in group:
            node = item.dep.target
            if id(node.module) not in names:
                continue  # an operation, not a layer
            is_out = graph.is_out_channel_pruning_fn(item.dep.handler)
            members.append(
                _Member(
                    name=names[id(node.module)],
                    module=node.module,
                    role="out" if is_out else "in",
                    entries=list(item.idxs),
                    channels=list(item.root_idxs),
                    dim=node.pruning_dim if isinstance(node.module, nn.Parameter) else 0,
                )
            )
        yield _Traced(channels=len(group[0].idxs), members=members)


def _is_root(member: _Member) -> bool:
    return member.role == "out" and isinstance(member.module, (_ConvNd, nn.Linear))


def _index_table(member: _Member, channels: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows: list[list[int]] = [[] for _ in range(channels)]
    for entry, channel in zip(member.entries, member.channels, strict=True):
        rows[channel].append(entry)
    if len({len(row) for row in rows}) != 1 or len(set(member.entries)) != len(member.entries):
        raise UnprunableError(f"its channels do not map evenly onto {member.name!r}")
    return np.array([sorted(row) for row in rows], dtype=np.int64)


def _tensor_dims(member: _Member) -> Iterator[tuple[str, int]]:
    """Yield the tensors (and the dimension of each) that a member's channels run through."""
    module, name = member.module, member.name
    if isinstance(module, nn.Parameter):
        yield name, member.dim % module.dim()
        return
    problem = _unsupported(module)
    if problem:
        raise UnprunableError(f"{name!r} is {problem}")
    prefix = f"{name}." if name else ""
    for tensor, dim in _layer_dims(module, member.role):
        if getattr(module, tensor) is not None:
            yield f"{prefix}{tensor}", dim


def _unsupported(module: nn.Module) -> str | None:
    if isinstance(module, _ConvNd) and 1 < module.groups != module.in_channels:
        return f"a convolution of {module.groups} groups"
    if isinstance(module, _ConvNd) and 1 < module.groups != module.out_channels:
        return "a depthwise convolution with a channel multiplier"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return f"a LayerNorm over {len(module.normalized_shape)} dimensions"
    if isinstance(module, nn.GroupNorm) and module.num_groups not in (1, module.num_channels):
        return f"a GroupNorm of {module.num_groups} groups"
    if isinstance(module, nn.Embedding):
        return "an embedding"
    supported = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
    if not isinstance(module, supported) and any(True for _ in module.parameters(recurse=False)):
        return f"a {type(module).__name__}, a layer type that cannot be cut yet"
    return None


def _layer_dims(module: nn.Module, role: Role) -> list[tuple[str, int]]:
    if isinstance(module, _ConvNd) and module.groups > 1:  # depthwise: rides on its channels
        return [("weight", 0), ("bias", 0)]
    if isinstance(module, _ConvTransposeNd):
        return [("weight", 1), ("bias", 0)] if role == "out" else [("weight", 0)]
    if isinstance(module, (_ConvNd, nn.Linear)):
        return [("weight", 0), ("bias", 0)] if role == "out" else [("weight", 1)]
    if isinstance(module, _NormBase):
        return [(t, 0) for t in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        return [("weight", 0), ("bias", 0)]
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return [("weight", 0)]
    return []


def _blocked_layers(
    model: nn.Module, groups: Sequence[ChannelGroup], reasons: dict[str, str]
) -> Iterator[Blocked]:
    pruned = {s.tensor for g in groups for s in g.slices if s.role == "out"}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(prefix=name, recurse=False))
        if not own or pruned & set(own):
            continue
        reason = reasons.get(name) or reasons.get(next(iter(own)))
        if reason is None:
            problem = _unsupported(module)
            reason = f"it is {problem}" if problem else "no prunable group runs through it"
        yield Blocked(layer=name, params=sum(p.numel() for p in own.values()), reason=reason)
