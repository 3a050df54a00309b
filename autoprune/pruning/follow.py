"""Following a model's channels: one run, every operation seen, labels carried along.

The rules are stated for the operations that torch's functions come down to, so that it makes no
difference how a model is written: modules, functions, bare parameters, einsum. What has no rule
freezes what it touches, and says so.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.pruning.forward import call, tensors_of, without_fast_path
from autoprune.pruning.labels import FIXED, WILD, Labels, Ledger, varying
from autoprune.pruning.layers import is_rms_norm
from autoprune.pruning.rules import (
    MEETS_FIXED,
    RULES,
    Context,
    Extent,
    Given,
    extents_of,
    pointwise,
)

IS_OUTPUT = "its outputs are the model's outputs"


@dataclass(eq=False)
class Trail:
    """What following one run found."""

    ledger: Ledger = field(default_factory=Ledger)
    positions: dict[str, list[tuple[Extent, ...]]] = field(default_factory=dict)
    """For each time that a weight is used, how many places it is applied at, in the example."""
    products: list[tuple[tuple[Extent, ...], tuple[str, ...]]] = field(default_factory=list)
    """Multiply-accumulates that are not a weight's: extents, and the modules they were in."""
    activations: list[Activation] = field(default_factory=list)
    skips: dict[str, tuple[Labels, Labels]] = field(default_factory=dict)
    """Modules that add their input to what they make of it: its labels, and their output's."""
    steps: int = 0


@dataclass(eq=False)
class Activation:
    """A tensor made on the way: its extents, bytes an entry, and when it is needed."""

    extents: tuple[Extent, ...]
    inside: tuple[str, ...]
    """The modules that were running when it was made."""
    itemsize: int
    born: int
    last: int


def follow(
    model: nn.Module,
    example: Any,
    *,
    prune_inputs: bool = False,
    embeddings: bool = False,
    training: nn.Module | None = None,
) -> Trail:
    """Run `model` once on `example` and return what its operations say about its channels.

    `training` is a copy of it that runs as in training, for what it does then alone; its costs do
    not count, and it may change.
    """
    trail = Trail()
    saved = model.state_dict(keep_vars=True)
    labels = {
        name: trail.ledger.label(name, tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        # A buffer that is not saved could not be loaded at another size.
        if tensor.is_floating_point() and name in saved
    }
    _follow_one(model, example, labels, trail, prune_inputs=prune_inputs, embeddings=embeddings)
    if training is not None:
        aside = Trail(ledger=trail.ledger)
        _follow_one(
            training, example, labels, aside, prune_inputs=prune_inputs, embeddings=embeddings
        )
    return trail


def _follow_one(
    model: nn.Module,
    example: Any,
    labels: Mapping[str, Labels],
    trail: Trail,
    *,
    prune_inputs: bool,
    embeddings: bool,
) -> None:
    follower = _Follower(trail, prune_inputs=prune_inputs, embeddings=embeddings)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, known in labels.items():
        follower.set(named[name], known)
    for tensor in tensors_of(example):
        follower.set(tensor, Labels(is_input=True))
    try:
        with _plain_operations(), follower.watching(model), follower:
            outputs = call(model, example)
    finally:
        for tensor in named.values():
            tensor.__dict__.pop(_LABELS, None)
    for tensor in tensors_of(outputs):
        made = follower.get(tensor)
        trail.ledger.freeze_all(made, IS_OUTPUT)
        trail.ledger.settle_debts(made)


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Have torch take the paths that come down to operations with rules."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(without_fast_path())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and it takes 0.9 s to import
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


_LABELS = "_autoprune_labels"


class _Follower(TorchDispatchMode, Context):  # type: ignore[no-untyped-call]
    """Sees every operation, and labels what comes out of it."""

    def __init__(self, trail: Trail, *, prune_inputs: bool, embeddings: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = trail.ledger
        self.prune_inputs = prune_inputs
        self.embeddings = embeddings
        self._trail = trail
        self._run = object()
        self._storages: dict[int, Activation] = {}
        self._new: dict[int, weakref.ref[Tensor]] = {}
        """Tensors that were made of nothing, by their storage: parts of them may be written."""
        self._inside: list[list[Any]] = []
        """For each module that is running: its input, whether that was added to, its name."""

    # Labels live on the tensors themselves, so that they go when the tensors do. A tensor that the
    # model keeps, as a cache of positions, still has those of an earlier run: they are not ours.

    def set(self, tensor: Tensor, labels: Labels) -> None:
        tensor.__dict__[_LABELS] = (self._run, labels)

    def get(self, tensor: Tensor) -> Labels:
        run, labels = tensor.__dict__.get(_LABELS, (None, None))
        return labels if run is self._run else Labels()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know when a norm runs, whose statistics are over channels, and when a block does."""
        hooks: list[Any] = []
        for name, module in model.named_modules():
            if is_rms_norm(module):
                hooks.append(module.register_forward_pre_hook(self._enter_norm))
                hooks.append(module.register_forward_hook(self._leave_norm))
            elif name and list(module.children()) and list(module.parameters()):
                hooks.append(
                    module.register_forward_pre_hook(self._enterer(name), with_kwargs=True)
                )
                hooks.append(module.register_forward_hook(self._leaver(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter_norm(self, *_: Any) -> None:
        self.norm_depth += 1

    def _leave_norm(self, *_: Any) -> None:
        self.norm_depth -= 1

    def _enterer(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = tensors_of((args, kwargs))
            self._inside.append([tensors[0] if tensors else None, False, name])

        return enter

    def _leaver(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            given, skipped, _ = self._inside.pop()
            same = isinstance(output, Tensor) and given is not None and output.shape == given.shape
            if skipped and same and args and args[0] is given:
                self._trail.skips[name] = (self.get(given), self.get(output))

        return leave

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare torch the import of its compiler: nothing is compiled while this follows."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = _bound(func, args, kwargs or {})
        tensors = [t for value in given.values() for t in tensors_of(value)]
        outs = tensors_of(out)
        labels = self._follow(func, given, tensors, outs)
        if func.overloadpacket is torch.ops.aten.add or func.overloadpacket is torch.ops.aten.add_:
            for block in self._inside:
                block[1] = block[1] or any(t is block[0] for t in tensors)
        for tensor, label in zip(outs, labels, strict=True):
            self.set(tensor, label)
            if any(tensor is t for t in tensors):
                self._write_back(tensor, label)
            elif label.base == WILD and _place(tensor) not in map(_place, tensors):
                self._new[_place(tensor)] = weakref.ref(tensor)
        self._remember(tensors, outs)
        return out

    def _follow(
        self, func: Any, given: Given, tensors: Sequence[Tensor], outs: Sequence[Tensor]
    ) -> Sequence[Labels]:
        ins = [self.get(t) for t in tensors]
        for labels in ins:
            self.ledger.settle_debts(labels)
        name = func.overloadpacket.__name__.rstrip("_")
        rule = RULES.get(name) or (pointwise if torch.Tag.pointwise in func.tags else None)
        if rule is not None:
            found = rule(self, given, outs)
            if found is not None:
                return found
        for labels in ins:
            self.ledger.freeze_all(labels, f"the operation `{name}` cannot be followed")
        wild = all(labels.base == WILD for labels in ins)
        return [Labels(base=WILD if wild else FIXED)] * len(outs)

    def _write_back(self, view: Tensor, labels: Labels) -> None:
        """Say of a new tensor what was written into a part of it."""
        found = self._new.get(_place(view))
        base = None if found is None else found()
        if base is None or base is view:
            return
        arrays = []
        for array in labels.arrays:
            moved = _placed(array, view, base)
            if moved is None:
                self.ledger.freeze(array, "its channels are written into a part of a tensor")
            else:
                arrays.append(moved)
        written = Labels(arrays=tuple(arrays), base=labels.base, is_input=labels.is_input)
        parts = [(self.get(base), base.shape), (written, base.shape)]
        self.set(base, self.ledger.join(parts, MEETS_FIXED))

    # --- what it costs ----------------------------------------------------------------------

    def multiplied(self, extents: Sequence[Extent]) -> None:
        self._trail.products.append((tuple(extents), self._running()))

    def weighed(self, weight: str, extents: Sequence[Extent]) -> None:
        self._trail.positions.setdefault(weight, []).append(tuple(extents))

    def _running(self) -> tuple[str, ...]:
        return tuple(block[2] for block in self._inside)

    def _remember(self, tensors: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        step = self._trail.steps = self._trail.steps + 1
        shared = set()
        for tensor in tensors:
            place = _place(tensor)
            shared.add(place)
            if place in self._storages:
                self._storages[place].last = step
        for tensor in outs:
            place = _place(tensor)
            if place in shared or not tensor.numel():
                continue
            made = Activation(self.extents(tensor), self._running(), tensor.itemsize, step, step)
            self._storages[place] = made
            self._trail.activations.append(made)

    def extents(self, tensor: Tensor) -> tuple[Extent, ...]:
        """Return a tensor's size as a product of extents."""
        return tuple(extents_of(tensor.shape, self.get(tensor).arrays, set(range(tensor.dim()))))


def _place(tensor: Tensor) -> int:
    """Return where a tensor's entries lie; views lie where the tensor does that they look at."""
    return tensor.untyped_storage().data_ptr()


def _placed(array: Tensor, view: Tensor, base: Tensor) -> Tensor | None:
    """Lay out an array of a view's labels as the tensor that it looks at; None if it sees a part.

    Dimensions are known by their strides.
    """
    places = {}
    for dim in sorted(varying(array)):
        known = (view.shape[dim], view.stride(dim))
        at = [d for d in range(base.dim()) if (base.shape[d], base.stride(d)) == known]
        if len(at) != 1:
            return None
        places[dim] = at[0]
    flat = array.reshape([array.shape[d] for d in places])
    order = sorted(range(len(places)), key=lambda i: list(places.values())[i])
    shape = [base.shape[d] if d in places.values() else 1 for d in range(base.dim())]
    return flat.permute(order).reshape(shape)


def _bound(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Given:
    names = func._schema.arguments
    given = {a.name: a.default_value for a in names if a.has_default_value()}
    given.update({a.name: value for a, value in zip(names, args, strict=False)})
    return given | dict(kwargs)
