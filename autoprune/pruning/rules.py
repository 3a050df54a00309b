"""What each operation does to channels: moves them, combines them, reads them, mixes them.

The rules are stated for the few hundred operations that torch's functions come down to, so that
it makes no difference how a model is written: modules, functions, bare parameters, einsum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoprune.pruning.forward import tensors_of
from autoprune.pruning.labels import FIXED, PART, WILD, Labels, Ledger, compress, varying

MEETS_FIXED = "its channels meet a tensor whose size is fixed, such as the model's input"
READS_FIXED = "it reads a tensor whose size is fixed, such as the model's input"

Given = dict[str, Any]
"""An operation's arguments, by name."""
Extent = tuple[int, Tensor | None]
"""A dimension's size, and the atoms along it."""


class Context:
    """What rules work with."""

    ledger: Ledger
    prune_inputs: bool
    embeddings: bool
    norm_depth: int = 0
    """How many normalisation modules are running: their statistics may be over channels."""

    def get(self, tensor: Tensor) -> Labels:
        raise NotImplementedError

    def multiplied(self, extents: Sequence[Extent]) -> None:
        """Count multiply-accumulates that are not a weight's."""
        raise NotImplementedError

    def weighed(self, weight: str, extents: Sequence[Extent]) -> None:
        """Count those of each entry of a weight: the places that it is applied at."""
        raise NotImplementedError


def extents_of(shape: Sequence[int], arrays: Sequence[Tensor], dims: set[int]) -> list[Extent]:
    """Return how many entries a tensor has along `dims`, as a product of extents."""
    found: list[Extent] = []
    covered: set[int] = set()
    for array in arrays:
        through = varying(array)
        if through and through <= dims - covered:
            covered |= through
            found.append((array.numel(), array.reshape(-1)))
    rest = math.prod(s for d, s in enumerate(shape) if d in dims - covered)
    return [(rest, None), *found]


Rule = Callable[[Context, Given, Sequence[Tensor]], Sequence[Labels] | None]
RULES: dict[str, Rule] = {}
"""By the operation's name; a rule that returns None leaves the operation unfollowed."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(found: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, found))
        return found

    return register


def _given_tensors(given: Given) -> list[Tensor]:
    return [t for value in given.values() for t in tensors_of(value)]


# --- entry by entry -----------------------------------------------------------------------------


@rule(
    *("masked_fill", "where", "hardswish", "hardsigmoid", "clone", "_to_copy", "detach", "alias"),
    *("native_dropout", "dropout", "copy", "zeros_like", "ones_like", "empty_like", "full_like"),
    *("rand_like", "randn_like", "bernoulli", "lift_fresh", "fill", "lerp", "log_sigmoid_forward"),
    *("_prelu_kernel", "clamp", "clip", "hardtanh", "relu", "threshold"),
)
def pointwise(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    parts = [(f.get(t), t.shape) for t in _given_tensors(given)]
    if not parts:
        return [Labels(base=WILD)] * len(outs)
    joined = f.ledger.join(parts, MEETS_FIXED)
    return [joined if t.shape == outs[0].shape else Labels() for t in outs]


@rule(
    *("zeros", "ones", "empty", "full", "arange", "rand", "randn", "scalar_tensor", "eye"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "linspace", "tril", "triu", "randint"),
    "empty_strided",
)
def create(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    source = given.get("self")
    made_new = not isinstance(source, Tensor) or "size" in given
    return [Labels(base=WILD)] * len(outs) if made_new else None


# --- moving entries about: what happens to the tensor happens to its labels ---------------------

Move = Callable[[Tensor, Given], Any]


def _moved(move: Move, f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    source = given.get("self", given.get("input"))
    if not isinstance(source, Tensor):
        return None
    labels = f.get(source)
    if labels.leaf and any(t.numel() != source.numel() for t in outs):
        labels = replace(labels, leaf=PART)
    arrays: list[list[Tensor]] = [[] for _ in outs]
    for array in labels.arrays:
        for i, part in enumerate(tensors_of(move(array.expand(source.shape), given))):
            small = compress(part)
            if small.numel() == 1:
                f.ledger.freeze(small, "one of its channels is picked by its number")
            arrays[i].append(small)
    return [f.ledger.note_joint(labels.moved(found)) for found in arrays]


_MOVES: dict[str, Move] = {
    "view": lambda x, g: x.reshape(g["size"]),
    "_unsafe_view": lambda x, g: x.reshape(g["size"]),
    "reshape": lambda x, g: x.reshape(g["shape"]),
    "_reshape_alias": lambda x, g: x.reshape(g["size"]),
    "permute": lambda x, g: x.permute(g["dims"]),
    "transpose": lambda x, g: x.transpose(g["dim0"], g["dim1"]),
    "t": lambda x, g: x.t(),
    "unsqueeze": lambda x, g: x.unsqueeze(g["dim"]),
    "squeeze": lambda x, g: x.squeeze() if g.get("dim") is None else x.squeeze(g["dim"]),
    "expand": lambda x, g: x.expand(g["size"]),
    "repeat": lambda x, g: x.repeat(g["repeats"]),
    "select": lambda x, g: x.select(g["dim"], g["index"]),
    "unbind": lambda x, g: x.unbind(g["dim"]),
    "flip": lambda x, g: x.flip(g["dims"]),
    "roll": lambda x, g: x.roll(g["shifts"], g["dims"]),
    "index": lambda x, g: torch.ops.aten.index(x, g["indices"]),
    "index_select": lambda x, g: x.index_select(g["dim"], g["index"]),
    "unfold": lambda x, g: x.unfold(g["dimension"], g["size"], g["step"]),
    "diagonal": lambda x, g: x.diagonal(g["offset"], g["dim1"], g["dim2"]),
    "constant_pad_nd": lambda x, g: torch.constant_pad_nd(x, g["pad"], FIXED),
    "pixel_shuffle": lambda x, g: torch.pixel_shuffle(x, g["upscale_factor"]),
    "pixel_unshuffle": lambda x, g: torch.pixel_unshuffle(x, g["downscale_factor"]),
}
RULES.update({name: partial(_moved, move) for name, move in _MOVES.items()})


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes")
def split(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    """Channels that are split into equal parts go from all parts alike."""
    sizes = given["split_sizes"] if "split_sizes" in given else given["split_size"]
    lengths = [t.shape[given["dim"]] for t in outs]
    _part_evenly(f, given, lengths[0] if len(set(lengths)) == 1 else 0)
    return _moved(lambda x, g: torch.split(x, sizes, g["dim"]), f, given, outs)


@rule("slice")
def slice_(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    """As with `split`: one of several equal parts of the channels, or a number of them."""
    size, dim, step = given["self"].shape[given["dim"]], given["dim"], given["step"]
    start, end, _ = slice(given["start"], given["end"], step).indices(size)
    if end - start < size:
        even = step == 1 and end > start and not size % (end - start) and not start % (end - start)
        _part_evenly(f, given, end - start if even else 0)
    return _moved(
        lambda x, g: torch.ops.aten.slice(x, dim, g["start"], g["end"], step), f, given, outs
    )


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    """The channels as so many equal parts, then the first of each part, the second, ..."""
    groups = given["groups"]
    _part_evenly(f, given | {"dim": 1}, given["self"].shape[1] // groups)
    return _moved(lambda x, g: torch.channel_shuffle(x, groups), f, given, outs)


def _part_evenly(f: Context, given: Given, part: int) -> None:
    """Tie what is at the same place in each part of `part` entries; 0 stands for uneven parts."""
    source, dim = given["self"], given["dim"] % given["self"].dim()
    for array in f.get(source).arrays:
        if dim not in varying(array):
            continue
        if not part:
            f.ledger.freeze(array, "its channels are cut into uneven parts by their numbers")
            continue
        table = array.movedim(dim, 0)
        table = table.reshape(-1, part, *table.shape[1:])
        f.ledger.tie(table[:1], table)


@rule("constant_pad_nd")
def pad(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    source = given["self"]
    grown = {d for d in range(source.dim()) if source.shape[d] != outs[0].shape[d]}
    labels = f.get(source)
    across = [a for a in labels.arrays if varying(a) & grown]
    if not across:  # along other dimensions than the channels': they stay as they are
        return [replace(labels, leaf=PART if labels.leaf else "")]
    return _moved(_MOVES["constant_pad_nd"], f, given, outs)


@rule("cat", "stack")
def cat(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    tensors = [t for t in given["tensors"] if t.dim() > 1 or t.numel()]
    dim = given["dim"] % outs[0].dim()
    parts = [f.get(t) for t in tensors]
    shapes = [list(t.shape) for t in tensors]
    if len(outs[0].shape) > len(shapes[0]):  # stacked: first give each the new dimension
        parts = [p.moved(a.unsqueeze(dim) for a in p.arrays) for p in parts]
        for shape in shapes:
            shape.insert(dim, 1)
    lengths = [shape[dim] for shape in shapes]
    for shape in shapes:
        shape[dim] = 1
    along = [[a for a in p.arrays if dim in varying(a)] for p in parts]
    across = [p.moved(a for a in p.arrays if dim not in varying(a)) for p in parts]
    joined = f.ledger.join(list(zip(across, shapes, strict=True)), MEETS_FIXED)
    arrays = list(joined.arrays)
    if any(along):
        pieces = []
        spread = {d for found in along for a in found for d in varying(a)}
        for part, found, shape, length in zip(parts, along, shapes, lengths, strict=True):
            full = [size if d in spread else 1 for d, size in enumerate(shape)]
            full[dim] = length
            first = found[0] if found else torch.full((1,) * len(full), part.base)
            for other in found[1:]:
                f.ledger.freeze(other, "its channels are laid out over several dimensions")
            pieces.append(first.expand(full))
        arrays.append(compress(torch.cat(pieces, dim)))
    solid = [p for p in parts if p.base == FIXED]
    return [
        f.ledger.note_joint(
            Labels(
                arrays=tuple(a for a in arrays if a.numel() > 1),
                base=joined.base,
                leaf=PART if solid and all(p.leaf for p in solid) else "",
                is_input=bool(solid) and all(p.is_input for p in solid),
            )
        )
    ]


@rule("glu")
def glu(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    source, dim = given["self"], given["dim"]
    half = outs[0].shape
    parts = [
        f.get(source).moved(
            compress(a.expand(source.shape).chunk(2, dim)[i]) for a in f.get(source).arrays
        )
        for i in range(2)
    ]
    return [f.ledger.join([(part, half) for part in parts], MEETS_FIXED)]


# --- over space: pooling, resizing, padding -----------------------------------------------------


@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d"),
    *("avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d"),
    *("adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "reflection_pad1d"),
    *("reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d"),
    *("replication_pad3d", "grid_sampler_2d", "grid_sampler_3d", "max_pool2d", "max_pool1d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
)
def spatial(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    source = given.get("self", given.get("input"))
    assert isinstance(source, Tensor)
    labels = f.get(source)
    found = Labels(arrays=tuple(_by_channel(f, labels)), base=labels.base)
    return [found if t.shape == outs[0].shape else Labels() for t in outs]


def _by_channel(f: Context, labels: Labels) -> list[Tensor]:
    """Return arrays that vary along dimension 1 alone.

    Channels laid out over space as well, as after a pixel shuffle, are tied there; what varies
    over space or the batch alone must stay.
    """
    found = []
    for array in labels.arrays:
        dims = varying(array)
        if 1 not in dims:
            f.ledger.freeze(array, "an operation mixes its channels, as it does neighbours")
            continue
        first = array
        for dim in dims - {1}:
            first = first.narrow(dim, 0, 1)
        f.ledger.tie(first, array)
        found.append(first)
    return found


@rule("im2col")
def im2col(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    places = math.prod(given["kernel_size"])
    labels = f.get(given["self"])
    arrays = [a.reshape(1, -1, 1) for a in _by_channel(f, labels)]
    return [labels.moved(a.repeat_interleave(places, 1) for a in arrays)]


# --- along a dimension --------------------------------------------------------------------------


@rule(
    *("sum", "mean", "amax", "amin", "max", "min", "std", "var", "var_mean", "std_mean", "norm"),
    *("linalg_vector_norm", "prod", "logsumexp", "all", "any", "argmax", "argmin", "median"),
    *("nansum", "count_nonzero"),
)
def reduce(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    source = given.get("self", given.get("x"))
    assert isinstance(source, Tensor)
    other = given.get("other")
    if isinstance(other, Tensor):  # max and min of two tensors
        return pointwise(f, given, outs)
    labels, dims = f.get(source), _dims(given, source)
    arrays, mixed = _along(labels, dims)
    if outs[0].dim() < source.dim():
        for dim in sorted(dims, reverse=True):
            arrays = [a.squeeze(dim) for a in arrays]
    # What nobody uses does no harm: attention returns its weights' mean over the heads.
    reason = "a sum, mean or maximum runs over its channels"
    debts = tuple((array, reason) for array in mixed if not f.norm_depth)
    return [Labels(arrays=tuple(arrays), base=labels.base, debts=debts)] * len(outs)


@rule(
    *("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "cumprod"),
    *("sort", "logcumsumexp", "cummax", "cummin"),
)
def along(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    source = given["self"]
    labels, dims = f.get(source), _dims(given, source)
    arrays, mixed = _along(labels, dims)
    for array in mixed:
        f.ledger.freeze(array, "a softmax, sum or sort runs over its channels")
    return [Labels(arrays=tuple(arrays), base=labels.base)] * len(outs)


def _dims(given: Given, source: Tensor) -> set[int]:
    dim = given.get("dim")
    if dim is None or dim == []:
        return set(range(source.dim()))
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return {d % max(source.dim(), 1) for d in dims}


def _along(labels: Labels, dims: set[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Split arrays into those that do not vary along `dims` and those that do."""
    mixed = [a for a in labels.arrays if varying(a) & dims]
    return [a for a in labels.arrays if not varying(a) & dims], mixed


# --- normalising --------------------------------------------------------------------------------


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"),
)
def batch_norm(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    joined = _with_vectors(f, given, "weight", "bias", "running_mean", "running_var")
    return [joined, *[Labels()] * (len(outs) - 1)]


def _with_vectors(f: Context, given: Given, *names: str) -> Labels:
    """Join an input, channels along dimension 1, with vectors of one number per channel."""
    source = given["input"]
    parts = [(f.get(source), source.shape)]
    for vector in (given.get(name) for name in names):
        if isinstance(vector, Tensor):
            labels = f.get(vector)
            shape = torch.Size((vector.shape[0],) + (1,) * (source.dim() - 2))
            parts.append((labels.moved(a.reshape(shape) for a in labels.arrays), shape))
    return replace(f.ledger.join(parts, MEETS_FIXED), leaf="", is_input=False)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    source = given["input"]
    labels = f.get(source)
    over = set(range(source.dim() - len(given["normalized_shape"]), source.dim()))
    for array in labels.arrays:
        if varying(array) & over and (len(over) > 1 or not varying(array) <= over):
            f.ledger.freeze(array, f"a norm runs over {len(over)} dimensions")
    parts = [(labels, source.shape)]
    own = [t for t in (given.get("weight"), given.get("bias")) if isinstance(t, Tensor)]
    joined = f.ledger.join([*parts, *((f.get(t), t.shape) for t in own)], MEETS_FIXED)
    return [replace(joined, leaf="", is_input=False), *[Labels()] * (len(outs) - 1)]


@rule("_weight_norm_interface")
def weight_norm(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    labels, dim = f.get(given["v"]), given["dim"]
    for array in labels.arrays:
        if varying(array) != {dim}:
            f.ledger.freeze(
                array, "the weights that read it are normalised over it: fold the weight norm in"
            )
    parts = [(labels, given["v"].shape), (f.get(given["g"]), given["g"].shape)]
    return [f.ledger.join(parts, MEETS_FIXED), *[Labels()] * (len(outs) - 1)]


@rule("native_group_norm")
def group_norm(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    """One group: the statistics are over the channels that stay. Several: a group goes whole."""
    groups, joined = given["group"], _with_vectors(f, given, "weight", "bias")
    for array in joined.arrays:
        if not varying(array) <= {1}:
            f.ledger.freeze(array, "an operation mixes its channels, as it does neighbours")
        elif groups > 1:
            _tie_blocks(f, array.reshape(-1), groups)
    return [joined, *[Labels()] * (len(outs) - 1)]


def _tie_blocks(f: Context, atoms: Tensor, blocks: int) -> Tensor:
    """Tie the atoms inside each of `blocks` equal parts; return the first of each."""
    table = atoms.reshape(blocks, -1)
    f.ledger.tie(table[:, :1], table, MEETS_FIXED)
    return table[:, 0]


# --- reading: matrix products and convolutions --------------------------------------------------


@rule("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear")
def matmul(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels] | None:
    added = None
    if "mat1" in given:
        added, left, right = given.get("self") if "beta" in given else None, given["mat1"], None
        right = given["mat2"]
    elif "batch1" in given:
        added, left, right = given["self"], given["batch1"], given["batch2"]
    elif "mat2" in given:
        left, right = given["self"], given["mat2"]
    elif "vec" in given and "mat" in given:
        added, left, right = given["self"], given["mat"], given["vec"]
    elif "vec" in given:
        left, right = given["self"], given["vec"]
    else:
        return None
    product = _product(f, left, right, outs[0])
    if added is None:
        return [product]
    return [f.ledger.join([(product, outs[0].shape), (f.get(added), added.shape)], MEETS_FIXED)]


def _product(f: Context, left: Tensor, right: Tensor, out: Tensor) -> Labels:
    """Follow left [batch, m, k] x right [batch, k, n], with or without the batch."""
    a, b = f.get(left), f.get(right)
    if left.dim() == 1:
        left, a = left[None], a.moved(x[None] for x in a.arrays)
    if right.dim() == 1:
        right, b = right[:, None], b.moved(x[:, None] for x in b.arrays)
    if left.dim() == 2:
        left, a = left[None], a.moved(x[None] for x in a.arrays)
    if right.dim() == 2:
        right, b = right[None], b.moved(x[None] for x in b.arrays)
    a_read, a_rest = _contracted(f, a, 2)
    b_read, b_rest = _contracted(f, b, 1)
    b_read = [x.transpose(1, 2) for x in b_read]
    _read(f, (a, a_read), (b, b_read))
    for own, rest in ((a, a_rest), (b, b_rest)):
        for array in rest if own.leaf else ():
            f.ledger.make(array)
    batch, rows, _ = left.shape
    columns = right.shape[2]
    free = [
        (a.moved(a_rest), (batch, rows, 1)),
        (b.moved(b_rest), (batch, 1, columns)),
    ]
    joined = f.ledger.join(free, MEETS_FIXED)
    arrays = joined.arrays
    _count(f, (a, left), (b, right), arrays, [*a_read, *b_read])
    keep = [d for d in range(3) if out.dim() == 3 or (d and (batch, rows, columns)[d] != 1)]
    if out.dim() == 2:
        keep = [1, 2]
    shaped = [x.reshape([x.shape[d] for d in keep]) for x in arrays]
    leaf = PART if a.leaf and b.leaf else ""
    return Labels(arrays=tuple(shaped), leaf=leaf)


def _contracted(f: Context, labels: Labels, dim: int) -> tuple[list[Tensor], list[Tensor]]:
    """Split arrays into those along the contracted dimension and the rest.

    Channels that are laid out over the contracted dimension and the batch, as those of attention
    heads are, go by the batch: a head goes whole.
    """
    read, rest = [], []
    for array in labels.arrays:
        dims = varying(array)
        if dims == {dim}:
            read.append(array)
        elif dim in dims:
            first = array.narrow(dim, 0, 1)
            f.ledger.tie(first, array)
            rest.append(compress(first))
        else:
            rest.append(array)
    return read, [a for a in rest if a.numel() > 1]


def _read(
    f: Context, left: tuple[Labels, list[Tensor]], right: tuple[Labels, list[Tensor]]
) -> None:
    """Tie what is multiplied and summed over; note which entries of parameters read."""
    (a, a_read), (b, b_read) = left, right
    for x in a_read:
        for y in b_read:
            f.ledger.tie(x, y)
    _alone(f, a_read, a, partner=b, partner_read=b_read)
    _alone(f, b_read, b, partner=a, partner_read=a_read)
    reading = b_read if b.leaf else a_read if a.leaf else []
    for array in reading:
        f.ledger.read(array)


def _alone(
    f: Context, arrays: Sequence[Tensor], own: Labels, *, partner: Labels, partner_read: Any
) -> None:
    """Freeze what is multiplied with something of fixed size, unless inputs may be pruned."""
    if partner_read or partner.base != FIXED:
        return
    if f.prune_inputs and own.leaf not in ("", PART) and partner.is_input:
        return
    for array in arrays:
        f.ledger.freeze(array, READS_FIXED)


def _count(
    f: Context,
    left: tuple[Labels, Tensor],
    right: tuple[Labels, Tensor],
    free: Sequence[Tensor],
    read: Sequence[Tensor],
) -> None:
    (a, x), (b, y) = left, right
    batch, rows, inner = x.shape
    sizes = (batch, rows, y.shape[2])
    for own, other, dims in ((b, a, {0, 1}), (a, b, {0, 2})):
        if own.leaf not in ("", PART) and not other.leaf:
            f.weighed(own.leaf, extents_of(sizes, free, dims))
            return
    of_inner = (inner, read[0].reshape(-1) if read else None)
    f.multiplied([of_inner, *extents_of(sizes, free, {0, 1, 2})])


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    source, weight, bias = given["input"], given["weight"], given.get("bias")
    groups, transposed = given["groups"], given.get("transposed", False)
    x, w = f.get(source), f.get(weight)
    reading: list[Tensor] = []
    making: list[Tensor] = []
    for array in w.arrays:
        dims = varying(array)
        if dims == {0} or dims == {1}:
            (making if dims == {int(transposed)} else reading).append(array.reshape(-1))
        else:
            f.ledger.freeze(array)
    channels = [a.reshape(-1) for a in _by_channel(f, x)]
    for array in making if w.leaf else ():
        f.ledger.make(array)
    if groups == 1:
        _read(f, (x, channels), (w, reading))
    else:
        making = _grouped(f, x, channels, making, reading, given)
    if w.leaf not in ("", PART):
        place = source if transposed else outs[0]
        f.weighed(w.leaf, [(place.shape[0] * math.prod(place.shape[2:]), None)])
    shape = (-1,) + (1,) * (outs[0].dim() - 2)
    made = Labels(arrays=tuple(a.reshape(1, *shape) for a in making if a.numel() > 1))
    if not isinstance(bias, Tensor):
        return [made]
    own = f.get(bias)
    own = own.moved(a.reshape(shape) for a in own.arrays)
    parts = [(made, outs[0].shape), (own, (bias.shape[0], *shape[1:]))]
    return [replace(f.ledger.join(parts, MEETS_FIXED), leaf="")]


def _grouped(
    f: Context,
    x: Labels,
    channels: list[Tensor],
    making: list[Tensor],
    reading: list[Tensor],
    given: Given,
) -> list[Tensor]:
    """Tie the inputs and outputs of each of a convolution's groups: it goes whole."""
    groups, weight = given["groups"], given["weight"]
    inside = "it lies inside the groups of a convolution"
    # A plain one's weight is [out, in / groups], a transposed one's [in, out / groups].
    rows = reading if given.get("transposed", False) else making
    for array in making if given.get("transposed", False) else reading:
        f.ledger.freeze(array, inside)
    if not channels and x.base == FIXED:
        for array in rows:
            f.ledger.freeze(array, READS_FIXED)
    if not rows:
        f.ledger.freeze_all(Labels(arrays=tuple(channels)), READS_FIXED)
        return []
    firsts = _tie_blocks(f, rows[0], groups)
    for array in channels:
        f.ledger.tie(_tie_blocks(f, array, groups), firsts)
    if not given.get("transposed", False):
        return [rows[0]]
    return [firsts.repeat_interleave(weight.shape[1])]


@rule("embedding")
def embedding(f: Context, given: Given, outs: Sequence[Tensor]) -> Sequence[Labels]:
    labels = f.get(given["weight"])
    arrays = []
    for array in labels.arrays:
        if varying(array) == {1}:
            arrays.append(array.reshape((1,) * (outs[0].dim() - 1) + (-1,)))
            f.ledger.make(array)
            if not f.embeddings:
                f.ledger.freeze(array, "it is an embedding, and those are pruned only when asked")
        else:
            f.ledger.freeze(array)
    return [Labels(arrays=tuple(arrays))]
