"""The rules of torch's own layers and of any that store sizes, and layers that a cut makes.

Rules are looked up here: whoever asks for one has them all, Hugging Face's too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

import autoprune.pruning.huggingface  # noqa: F401  # registers its rules
from autoprune.errors import AutopruneError
from autoprune.pruning.group_rules import GROUP_RULES as GROUP_RULES
from autoprune.pruning.group_rules import GroupRule, Stay, Tie, group_rule

SELECTED = "selected"
"""Buffer of a layer that picks its own inputs: which of the entries it is given it reads."""


def rule_of(module: nn.Module) -> GroupRule:
    """Return the rule for a module; one that asks for nothing, if there is none."""
    for kind in type(module).__mro__:
        found = GROUP_RULES.get(kind) or GROUP_RULES.get(f"{kind.__module__}.{kind.__qualname__}")
        if found is not None:
            return found
    return _STORED_SIZES


def fit_attributes(model: nn.Module) -> None:
    """Make each layer's size attributes agree with the shapes of its tensors."""
    skipped = {id(m) for s in model.modules() if isinstance(s, Skipped) for m in s.modules()}
    for module in model.modules():
        if id(module) not in skipped:
            rule_of(module).fit(module)


def over_channels(module: nn.Module) -> bool:
    """Return whether a module's statistics run over its channels: over those that stay, if cut."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == 1
    return isinstance(module, nn.LayerNorm) or is_rms_norm(module)


def is_rms_norm(module: nn.Module) -> bool:
    """Return whether a module divides by the root mean square of its last dimension."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor)


# --- torch's own layers -------------------------------------------------------------------------


@group_rule(_ConvNd)
class ConvRule(GroupRule):
    """Convolutions of any dimension: of a grouped one whole groups go."""

    def fit(self, module: _ConvNd) -> None:
        first, second = module.weight.shape[:2]
        transposed = isinstance(module, _ConvTransposeNd)
        if module.groups > 1:  # whole groups go: how much is in each stays
            inside = module.in_channels if transposed else module.out_channels
            module.groups = first * module.groups // inside
        ins, outs = (first, second) if transposed else (second, first)
        module.in_channels = ins if transposed else ins * module.groups
        module.out_channels = outs * module.groups if transposed else outs
        if SELECTED in module._buffers:
            _select(module)


@group_rule(nn.Linear)
class LinearRule(GroupRule):
    """Its features are its weight's shape; it may be made to pick what it reads."""

    def fit(self, module: nn.Linear) -> None:
        module.out_features, module.in_features = module.weight.shape
        if SELECTED in module._buffers:
            _select(module)


@group_rule(_NormBase)
class BatchNormRule(GroupRule):
    """As many features as it has statistics or weights."""

    def fit(self, module: _NormBase) -> None:
        for tensor in (module.weight, module.running_mean):
            if tensor is not None:
                module.num_features = tensor.shape[0]


@group_rule(_InstanceNorm)
class InstanceNormRule(BatchNormRule):
    """The same; one that holds no tensors takes as many channels as it is given."""

    def fit(self, module: _NormBase) -> None:
        super().fit(module)
        sized = module.affine or module.track_running_stats
        if not sized and type(module) in _UNSIZED:
            module.__class__ = _UNSIZED[type(module)]  # type: ignore[assignment]


def _unsized(base: type[_InstanceNorm]) -> type[_InstanceNorm]:
    """Return an instance norm that holds no tensors, and so does not know how many channels."""

    def forward(self: Any, input: Tensor) -> Tensor:
        self.num_features = input.shape[input.dim() - self._get_no_batch_dim()]
        result: Tensor = base.forward(self, input)
        return result

    return type(f"Unsized{base.__name__}", (base,), {"forward": forward})


_UNSIZED: dict[type[nn.Module], type[nn.Module]] = {
    base: _unsized(base) for base in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
}


@group_rule(nn.LayerNorm)
class LayerNormRule(GroupRule):
    """Its normalised shape is its weight's."""

    def fit(self, module: nn.LayerNorm | nn.RMSNorm) -> None:
        if isinstance(module.weight, Tensor):
            module.normalized_shape = tuple(module.weight.shape)


@group_rule(nn.RMSNorm)
class RMSNormRule(LayerNormRule):
    """The same as for `nn.LayerNorm`."""


@group_rule(nn.GroupNorm)
class GroupNormRule(GroupRule):
    """Whole groups of channels go: how many are in each stays."""

    def fit(self, module: nn.GroupNorm) -> None:
        if not module.affine:
            return
        channels = module.weight.shape[0]
        if module.num_groups > 1:  # whole groups go
            module.num_groups = channels * module.num_groups // module.num_channels
        module.num_channels = channels


@group_rule(nn.PReLU)
class PReLURule(GroupRule):
    """One slope a channel, or one for all."""

    def fit(self, module: nn.PReLU) -> None:
        module.num_parameters = module.weight.shape[0]


@group_rule(nn.Embedding)
class EmbeddingRule(GroupRule):
    """As many dimensions as its table has columns."""

    def fit(self, module: nn.Embedding) -> None:
        module.num_embeddings, module.embedding_dim = module.weight.shape


@group_rule(nn.RNNBase)
class RecurrentRule(GroupRule):
    """All layers and both directions of one module have one hidden size."""

    def asks(self, module: nn.RNNBase) -> Iterator[Tie | Stay]:
        hidden = [n for n, _ in module.named_parameters() if n.startswith("weight_hh")]
        yield Tie(places=tuple((name, 1) for name in hidden))
        if module.proj_size:
            for name in hidden:
                yield Stay(tensor=name, dim=1, reason="its hidden state is projected (proj_size)")

    def fit(self, module: nn.RNNBase) -> None:
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        if not module.proj_size:
            module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
        module.flatten_parameters()


# --- attention ----------------------------------------------------------------------------------

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
SIZES = ("feature", "channel", "hidden", "inner", "units", "width", "embed", "all_head")
"""Parts of the names of attributes that may hold a layer's size."""


class StoredSizesRule(GroupRule):
    """Any module that stores sizes beside the linear layers it has.

    The number of heads, as Hugging Face's attention and most that people write themselves have
    it: whole heads go, so that the size of one stays. And any attribute that by its name may be,
    and by its value is, what one of the module's linear layers used to read or make.
    """

    def fit(self, module: nn.Module) -> None:
        children = [m for m in module.children() if isinstance(m, nn.Linear)]
        changed: dict[int, set[int]] = {}
        for child in children:
            new = child.weight.shape
            for old, now in ((child.out_features, new[0]), (child.in_features, new[1])):
                changed.setdefault(old, set()).add(now)
        self._fit_heads(module, children)
        for name, value in list(vars(module).items()):
            if type(value) is int and any(part in name for part in SIZES):
                sizes = changed.get(value, set())
                if len(sizes) == 1:  # of several, nobody knows which is meant
                    setattr(module, name, next(iter(sizes)))

    def _fit_heads(self, module: nn.Module, children: list[nn.Linear]) -> None:
        name = next((n for n in HEADS if type(getattr(module, n, None)) is int), None)
        if name is None:
            return
        heads = getattr(module, name)
        for place, maker in enumerate(children):
            old, new = maker.out_features, maker.weight.shape[0]
            left, odd = divmod(new * heads, old)
            # A later layer reads what makes heads: all of it, or a third of queries, keys, values.
            inside = any(
                (reader.in_features * share, reader.weight.shape[1] * share) == (old, new)
                for reader in children[place + 1 :]
                for share in (1, 2, 3)
            )
            if new != old and not odd and inside:
                setattr(module, name, left)
                config = getattr(module, "config", None)
                if getattr(config, name, None) == heads:  # shared with layers of other heads
                    module.config = copy.copy(config)  # type: ignore[assignment]
                    setattr(module.config, name, left)
                return


_STORED_SIZES = StoredSizesRule()


class TrimmedAttention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` whose heads no longer add up to the embedding's size.

    It has the same parameters and is called in the same way.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        given = [t if batched else t[None] for t in (query, key, value)]
        if batched and not self.batch_first:
            given = [t.transpose(0, 1) for t in given]
        q, k, v = (
            t.reshape(*t.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for t in self._projected(*given)
        )
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        if is_causal and mask is None:
            ones = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask = torch.zeros_like(ones, dtype=q.dtype).masked_fill(ones.triu(1), -torch.inf)
        weights: Tensor | None = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        packed: Tensor | None = self.in_proj_weight
        weights = separate if packed is None else packed.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            F.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Return one mask to add to the scores, [batch, heads, queries, keys] or less."""

        def additive(given: Tensor) -> Tensor:
            if given.dtype != torch.bool:
                return given.to(q.dtype)
            return torch.zeros_like(given, dtype=q.dtype).masked_fill(given, -torch.inf)

        total = None if mask is None else additive(mask)
        if total is not None and total.dim() == 3:
            total = total.reshape(q.shape[0], -1, *total.shape[1:])
        if padding is not None:
            rows = additive(padding).reshape(q.shape[0], 1, 1, k.shape[2])
            total = rows if total is None else total + rows
        return total


@group_rule(nn.MultiheadAttention)
class MultiheadRule(GroupRule):
    """Whole heads go: the size of one stays."""

    def asks(self, module: nn.MultiheadAttention) -> Iterator[Tie | Stay]:
        if module.bias_k is not None or module.add_zero_attn:
            yield Stay(tensor="out_proj.weight", dim=1, reason="its heads have extra keys (bias_k)")

    def fit(self, module: nn.MultiheadAttention) -> None:
        if not _is_smaller(module):
            return
        out, inner = module.out_proj.weight.shape
        module.embed_dim, module.num_heads = out, inner // module.head_dim
        packed = module.q_proj_weight is None
        module.kdim = (module.in_proj_weight if packed else module.k_proj_weight).shape[1]
        module.vdim = (module.in_proj_weight if packed else module.v_proj_weight).shape[1]
        module.__class__ = TrimmedAttention
        # TransformerEncoderLayer's fused path cannot have fewer heads: this switches it off.
        module._qkv_same_embed_dim = False


def _is_smaller(module: nn.MultiheadAttention) -> bool:
    """Return whether an attention's tensors are smaller than it was built."""
    built = (module.embed_dim, module.num_heads * module.head_dim)
    return tuple(module.out_proj.weight.shape) != built


@group_rule(nn.TransformerEncoder)
class EncoderRule(GroupRule):
    """Its layers get no nested tensors once an attention was cut: only a whole one takes them."""

    def fit(self, module: nn.TransformerEncoder) -> None:
        for inner in module.modules():
            if isinstance(inner, nn.MultiheadAttention) and inner.out_proj.weight is not None:
                trimmed = isinstance(inner, TrimmedAttention) or _is_smaller(inner)
                module.use_nested_tensor = module.use_nested_tensor and not trimmed


# --- blocks that are not there ------------------------------------------------------------------


class Skipped(nn.Module):
    """Stands where a residual block was: what comes in goes out."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


def skip(module: nn.Module) -> None:
    """Make a block pass on what it is given, and drop its tensors, in place.

    It keeps its class as a base and its attributes, which the module around it may ask for.
    """
    for inner in module.modules():
        for held in (inner._parameters, inner._buffers):
            for name in held:
                held[name] = None
    kind = type(module)
    if kind not in _SKIPPED:
        _SKIPPED[kind] = type(f"Skipped{kind.__name__}", (Skipped, kind), {})
    module.__class__ = _SKIPPED[kind]


_SKIPPED: dict[type[nn.Module], type[nn.Module]] = {}


# --- layers that pick their own inputs ----------------------------------------------------------


class SelectingLinear(nn.Linear):
    """A linear layer that reads some of the features it is given: those in ``selected``."""

    selected: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.index_select(-1, self.selected))


def _selecting_conv(base: type[_ConvNd]) -> type[_ConvNd]:
    def forward(self: Any, input: Tensor) -> Tensor:
        channel = input.dim() - len(self.kernel_size) - 1
        result: Tensor = base.forward(self, input.index_select(channel, self.selected))
        return result

    return type(f"Selecting{base.__name__}", (base,), {"forward": forward})


_SELECTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SelectingLinear,
    **{base: _selecting_conv(base) for base in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
}


def may_select(module: nn.Module) -> bool:
    """Return whether a layer can be made to pick its own inputs."""
    return type(module) in _SELECTING and getattr(module, "groups", 1) == 1


def selects(module: nn.Module) -> bool:
    """Return whether a layer picks its own inputs."""
    return type(module) in _SELECTING.values()


def picked(module: nn.Module, given: Tensor) -> Tensor:
    """Return what a layer reads of its input: all of it, or the entries that it picks."""
    if not selects(module):
        return given
    selected = module.get_buffer(SELECTED)
    spatial = len(getattr(module, "kernel_size", ()))
    return given.index_select(given.dim() - 1 - spatial, selected)


def _select(module: nn.Module) -> None:
    if selects(module):
        return
    if not may_select(module):
        raise AutopruneError(
            f"A layer that picks its own inputs must be a Linear or a Conv of one group, "
            f"but is a {type(module).__name__}."
        )
    module.__class__ = _SELECTING[type(module)]
