"""Finding channel groups: follow one run of the model, then prove what was found.

The operations tell which channels can only go together (`follow`), the modules' own code may ask
for more (`layers`). Each group is then proved on the model itself: cut, and compare. What does not
hold is blocked with its reason, never guessed.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.follow import Trail, follow
from autoprune.pruning.forward import (
    batch_size_of,
    call,
    map_tensors,
    randomised,
    shared_names,
    tensors_of,
)
from autoprune.pruning.group_rules import ASKS, Tie
from autoprune.pruning.groups import (
    BLOCK,
    Activation,
    Blocked,
    ChannelGroup,
    Extent,
    Grouping,
    IntArray,
    Product,
    Slice,
)
from autoprune.pruning.labels import Leaf, Ledger, compress, varying
from autoprune.pruning.layers import SELECTED, may_select, rule_of, selects
from autoprune.pruning.proof import DOES_NOT_TRAIN, Proof, droppable, in_training
from autoprune.pruning.rules import Extent as AtomExtent

INPUTS = ".inputs"
"""What is appended to a layer's name to name the group of its input features."""


def find_groups(
    model: nn.Module,
    example: Any,
    *,
    keep: Sequence[str] = (),
    prune_inputs: bool = False,
    embeddings: bool = False,
) -> Grouping:
    """Find the channel groups of `model`, and say for every other layer why it stays dense.

    Parameters
    ----------
    model
        Any module; it is not changed.
    example
        Inputs the model can be called with: a tensor, a tuple (positional) or a dict (by keyword).
    keep
        Glob patterns of layer names that must never lose channels, e.g. ``["head", "stem.*"]``.
    prune_inputs
        Whether the first layers may read fewer features of the model's inputs. They then pick
        what they read themselves: the model is called as before.
    embeddings
        Whether the dimension of embeddings, and of all that is added to them, may be pruned.

    Raises
    ------
    AutopruneError
        If the example does not fit the model, a pattern matches no layer, or running it fails.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> grouping = find_groups(model, torch.zeros(1, 4))
    >>> grouping.channels, grouping.blocked[0].reason
    ({'0': 8}, "its outputs are the model's outputs")
    """
    _check_storable(model)
    with _evaluating(model):
        check_example(model, example)
        kept_layers = _matching_layers(model, keep)
        example = map_tensors(lambda t: t.detach(), randomised(example))
        proof = Proof(model, example)

        def found(training: nn.Module | None = None) -> tuple[_Finder, list[ChannelGroup]]:
            trail = follow(
                model,
                example,
                prune_inputs=prune_inputs,
                embeddings=embeddings,
                training=training,
            )
            _ask_modules(model, trail.ledger)
            finder = _Finder(model, trail, kept_layers, prune_inputs, proof)
            return finder, finder.find()

        finder, proved = found()
        if any(why.startswith(DOES_NOT_TRAIN) for why in finder.reasons.values()):
            # What runs in training alone is followed, too.
            finder, proved = found(in_training(copy.deepcopy(model)))
        blocks = droppable(model, finder.blocks(), example)
    return finder.grouping(proved, samples=batch_size_of(example), blocks=blocks)


def _check_storable(model: nn.Module) -> None:
    """Raise unless `model` can be copied, and its state be stored as tensors."""
    odd = next((n for n, v in model.state_dict().items() if not isinstance(v, Tensor)), None)
    if odd is not None:
        raise AutopruneError(
            f"The model's state must be tensors, but {odd!r} is none: what `get_extra_state` "
            f"returns cannot be stored beside them. Keep it in a buffer."
        )
    try:
        # Tensors are not copied: it is the rest that may not be open to it.
        held = [*model.parameters(), *model.buffers()]
        copy.deepcopy(model, {id(t): t for t in held})
    except Exception as error:
        raise AutopruneError(
            f"The model must be open to copying, but copying it raised {first_line(error)}. "
            f"Fold old-style hooks such as `weight_norm` in first (`remove_weight_norm`)."
        ) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; put every module's own mode back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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


# --- from atoms to groups -----------------------------------------------------------------------


def _ask_modules(model: nn.Module, ledger: Ledger) -> None:
    """Tie and freeze what the modules' own code asks for."""
    places = {(leaf.tensor, leaf.dim) for leaf in ledger.leaves}
    first = shared_names(model)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""

        def place(tensor: str, dim: int, prefix: str = prefix) -> tuple[str, int]:
            name = f"{prefix}{tensor}"
            return first.get(name, name), dim

        for ask in (*rule_of(module).asks(module), *getattr(module, ASKS, ())):
            if isinstance(ask, Tie):
                known = [p for p in (place(*p) for p in ask.places) if p in places]
                for other in known:
                    ledger.tie(ledger.atoms(*known[0]), ledger.atoms(*other))
                    if ask.block > 1:
                        rows = ledger.atoms(*other).reshape(-1, ask.block)
                        ledger.tie(rows[:, :1], rows)
            elif place(ask.tensor, ask.dim) in places:
                ledger.freeze(ledger.atoms(*place(ask.tensor, ask.dim)), ask.reason)


@dataclass
class _Finder:
    """Turns what following a model found into groups, and keeps the reasons for the rest."""

    model: nn.Module
    trail: Trail
    kept_layers: Mapping[str, str]
    """The pattern that keeps a layer, by the layer's name."""
    prune_inputs: bool
    proof: Proof
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a layer's channels cannot go, by the layer's name."""

    def __post_init__(self) -> None:
        self._ledger = self.trail.ledger
        self._class_of: IntArray = self._ledger.classes()
        self._why = self._ledger.reasons(self._class_of)

    def find(self) -> list[ChannelGroup]:
        """Return the groups that hold; where a choice was open, the other one is tried as well."""
        mark = self._ledger.mark()
        self._settle(most=True)
        candidates = self._groups()
        proved = self._proved(candidates)
        if self._ledger.mark() > mark and len(proved) < len(candidates):
            self._ledger.undo(mark)
            self._settle(most=False)
            taken = {(s.tensor, s.dim) for g in proved for s in g.slices}
            others = [
                g for g in self._groups() if not taken & {(s.tensor, s.dim) for s in g.slices}
            ]
            proved += self._proved(others)
            order = {name: i for i, (name, _) in enumerate(self.model.named_parameters())}
            proved.sort(key=lambda g: min(order.get(s.tensor, len(order)) for s in g.slices))
        return proved

    # --- settling what is open --------------------------------------------------------------

    def _settle(self, *, most: bool) -> None:
        """Decide how channels go that are laid out over several dimensions of a tensor.

        They can go along one of the dimensions only. What has to be the same along the others is
        tied: so that as many channels as possible stay apart, or as few.
        """
        while True:
            numbers = self._numbers(self._ledger.classes())
            open_one, dims = self._open_one(numbers)
            if open_one is None:
                break
            pick = max if most else min
            stays = pick(dims, key=lambda d: (open_one.shape[d], d))
            rest = open_one
            for dim in dims:
                if dim != stays:
                    rest = rest.narrow(dim, 0, 1)
            self._ledger.tie(rest, open_one, "its channels are laid out over several dimensions")
        self._class_of = self._ledger.classes()
        self._why = self._ledger.reasons(self._class_of)

    def _open_one(self, numbers: Tensor) -> tuple[Tensor | None, list[int]]:
        """Return an array that still varies along several dimensions, and along which."""
        for array in self._ledger.joint:
            of = torch.where(array > 0, numbers[array.clamp(min=0)], -1)
            dims = sorted(varying(compress(of)))
            if len(dims) > 1:
                return array, dims
        return None, []

    def _numbers(self, classes: IntArray) -> Tensor:
        """Return the class of every atom, one number for all that must stay."""
        numbers = np.arange(int(classes.max()) + 1)
        numbers[list(self._ledger.reasons(classes))] = -1
        return torch.from_numpy(numbers[classes])

    # --- groups -----------------------------------------------------------------------------

    def _groups(self) -> list[ChannelGroup]:
        """Return what could be pruned: classes that run through the same dimensions."""
        leaves, read, made = self._ledger.leaves, self._ledger.readers(), self._ledger.makers()
        entries: dict[int, dict[int, list[int]]] = {}  # class -> leaf's number -> entries
        for number, leaf in enumerate(leaves):
            for entry, of in enumerate(self._class_of[leaf.atoms].tolist()):
                if of not in self._why:
                    entries.setdefault(of, {}).setdefault(number, []).append(entry)
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for of, places in entries.items():
            signature = tuple((number, len(found)) for number, found in places.items())
            alike.setdefault(signature, []).append(of)
        found = []
        for signature, members in alike.items():
            slices = []
            for number, _ in signature:
                leaf = leaves[number]
                index = np.array([entries[of][number] for of in members])
                reads, makes = (bool(m[leaf.start + index].any()) for m in (read, made))
                # A tied weight may do both: one slice each.
                if makes or not reads:
                    slices.append((leaf, index, "out"))
                if reads:
                    slices.append((leaf, index, "in"))
            group = self._group(slices)
            if group is not None:
                found.append(group)
        return _named(self.model, found)

    def _group(self, slices: Sequence[tuple[Leaf, IntArray, Any]]) -> ChannelGroup | None:
        channels = len(slices[0][1])
        group = ChannelGroup(
            name="",
            channels=channels,
            slices=tuple(
                Slice(tensor=leaf.tensor, dim=leaf.dim, role=role, index=index)
                for leaf, index, role in slices
            ),
        )
        pattern = next((p for n in _makers(group) if (p := self.kept_layers.get(n))), None)
        if pattern is not None:
            self._block(group, f"kept by {pattern!r}")
            return None
        if all(s.role == "out" for s in group.slices):
            self._block(group, "nothing in the run reads its outputs")
            return None
        if len(group.slices) == 1:  # all of it reads
            return self._input_group(group) if self.prune_inputs else None
        if channels < 2:
            self._block(group, "it has a single channel")
            return None
        return group

    def _input_group(self, group: ChannelGroup) -> ChannelGroup | None:
        """Add to a group of input features the buffer by which the layer picks them."""
        piece = group.slices[0]
        path = piece.tensor.rpartition(".")[0]
        layer = self.model.get_submodule(path)
        if not (may_select(layer) or selects(layer)) or piece.dim != 1 or group.channels < 2:
            return None
        name = f"{path}.{SELECTED}" if path else SELECTED
        picks = Slice(tensor=name, dim=0, role="out", index=piece.index)
        return ChannelGroup(name="", channels=group.channels, slices=(piece, picks))

    # --- proof ------------------------------------------------------------------------------

    def _proved(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """Return the groups that the model itself confirms; block the others."""
        faults = self.proof.faults(groups, self.grouping(groups, samples=1))
        for group in groups:
            if group.name in faults:
                self._block(group, faults[group.name])
        return [g for g in groups if g.name not in faults]

    def _block(self, group: ChannelGroup, reason: str) -> None:
        for layer in _makers(group):
            self.reasons.setdefault(layer, reason)

    # --- the whole --------------------------------------------------------------------------

    def grouping(
        self, groups: Sequence[ChannelGroup], *, samples: int, blocks: Sequence[str] = ()
    ) -> Grouping:
        """Return everything that is known, with `groups` as what can be pruned."""
        column = self._columns(groups)
        return Grouping(
            groups=tuple(groups),
            blocked=tuple(self._blocked(groups)),
            shapes={name: tuple(p.shape) for name, p in self.model.named_parameters()},
            positions={
                name: tuple(self._summed(((e, ()) for e in uses), column, groups, samples, ()))
                for name, uses in self.trail.positions.items()
            },
            products=tuple(self._summed(self.trail.products, column, groups, samples, blocks)),
            activations=tuple(self._activations(column, groups, samples, blocks)),
            blocks=tuple(f"{name}{BLOCK}" for name in blocks),
            norms=tuple(
                f"{name}.weight"
                for name, module in self.model.named_modules()
                if isinstance(module, _NormBase) and module.weight is not None
            ),
        )

    def _columns(self, groups: Sequence[ChannelGroup]) -> IntArray:
        """Return, by atom, the number of its group; -1 if it has none."""
        number = np.full(int(self._class_of.max()) + 1, -1)
        starts = {(leaf.tensor, leaf.dim): leaf.start for leaf in self._ledger.leaves}
        for i, group in enumerate(groups):
            for piece in group.slices:
                start = starts.get((piece.tensor, piece.dim))
                if start is not None:
                    number[self._class_of[start + piece.index.reshape(-1)]] = i
        found: IntArray = number[self._class_of]
        found[0] = -1
        return found

    def _extent(
        self, extent: AtomExtent, column: IntArray, groups: Sequence[ChannelGroup]
    ) -> Extent:
        size, atoms = extent
        if atoms is None:
            return Extent(size=size, entries={})
        numbers, counts = np.unique(column[atoms.clamp(min=0).numpy()], return_counts=True)
        entries = {
            groups[n].name: count // groups[n].channels
            for n, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            if n >= 0
        }
        return Extent(size=size, entries=entries)

    def _product(
        self, extents: Sequence[AtomExtent], column: IntArray, groups: Sequence[ChannelGroup]
    ) -> tuple[tuple[Extent, ...], int]:
        """Return the extents that shrink, and the product of those that do not."""
        found = [self._extent(e, column, groups) for e in extents]
        constant = 1
        for extent in found:
            constant *= 1 if extent.entries else extent.size
        return tuple(e for e in found if e.entries), constant

    def blocks(self) -> list[str]:
        """Return the innermost modules that can be left out: what comes in could go on."""
        found = []
        for name, (given, made) in self.trail.skips.items():
            before, after = (
                sorted((compress(self._of(a)) for a in each.arrays), key=lambda a: a.shape)
                for each in (given, made)
            )
            alike = len(before) == len(after) and all(map(torch.equal, before, after))
            if alike and not self._shares(name):
                found.append(name)
        return [n for n in found if not any(o.startswith(f"{n}.") for o in found)]

    def _shares(self, block: str) -> bool:
        """Return whether a parameter of `block` is used outside it as well: it could not go."""
        places: dict[int, set[bool]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), set()).add(name.startswith(f"{block}."))
        return any(len(inside) > 1 for inside in places.values())

    def _of(self, atoms: Tensor) -> Any:
        """Return the class of each atom; entries without one stand for themselves."""
        numbers = torch.from_numpy(self._class_of)[atoms.clamp(min=0)]
        return torch.where(atoms > 0, numbers, atoms - 1)

    def _summed(
        self,
        products: Iterable[tuple[tuple[AtomExtent, ...], tuple[str, ...]]],
        column: IntArray,
        groups: Sequence[ChannelGroup],
        samples: int,
        blocks: Sequence[str],
    ) -> Iterator[Product]:
        totals: dict[tuple[Any, ...], tuple[tuple[Extent, ...], int]] = {}
        for extents, inside in products:
            shrinking, constant = self._product(extents, column, groups)
            shrinking += _present(inside, blocks)
            key = tuple((e.size, tuple(e.entries.items())) for e in shrinking)
            known = totals.get(key, (shrinking, 0))
            totals[key] = (shrinking, known[1] + constant)
        for shrinking, times in totals.values():
            yield Product(extents=shrinking, times=Fraction(times, samples))

    def _activations(
        self,
        column: IntArray,
        groups: Sequence[ChannelGroup],
        samples: int,
        blocks: Sequence[str],
    ) -> Iterator[Activation]:
        for made in self.trail.activations:
            shrinking, constant = self._product(made.extents, column, groups)
            shrinking += _present(made.inside, blocks)
            size = Fraction(constant * made.itemsize, samples)
            yield Activation(
                product=Product(extents=shrinking, times=size), born=made.born, last=made.last
            )

    def _blocked(self, groups: Sequence[ChannelGroup]) -> Iterator[Blocked]:
        pruned = {s.tensor for g in groups for s in g.slices if s.role == "out"}
        first = shared_names(self.model)
        for name, module in self.model.named_modules():
            own = dict(module.named_parameters(prefix=name, recurse=False))
            dense = {n: p for n, p in own.items() if first.get(n, n) not in pruned}
            # A module is named as a whole, or its parameters where others of it are pruned.
            parts = {name: dense} if dense == own else {n: {n: p} for n, p in dense.items()}
            for part, tensors in parts.items() if dense else ():
                params = sum(p.numel() for p in tensors.values())
                yield Blocked(layer=part, params=params, reason=self._reason(part, tensors))

    def _reason(self, layer: str, own: Mapping[str, Tensor]) -> str:
        """Return why none of a layer's channels can go."""
        read = self._ledger.readers()
        first = shared_names(self.model)
        tensors = {first.get(name, name) for name in own}
        for leaf in self._ledger.leaves:
            if leaf.tensor in tensors and not read[leaf.atoms].all():
                why = {self._why.get(c) for c in self._class_of[leaf.atoms].tolist()}
                if any(why):
                    return next(w for w in why if w)
        if layer in self.reasons:
            return self.reasons[layer]
        matrices = [t for t in own.values() if t.dim() > 1]
        if any(1 in t.shape[:2] for t in matrices):
            return "it has a single channel"
        return "no prunable group runs through it"


def _present(inside: Sequence[str], blocks: Sequence[str]) -> tuple[Extent, ...]:
    """Return a factor that is 0 once a block is dropped, for each block that runs."""
    return tuple(Extent(size=1, entries={f"{n}{BLOCK}": 1}) for n in inside if n in blocks)


def _makers(group: ChannelGroup) -> list[str]:
    """Return the names of the layers that lose outputs with a group."""
    names = [s.tensor.rpartition(".")[0] for s in group.slices if s.role == "out"]
    return list(dict.fromkeys(names))


def _named(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Name each group after its root: the first layer that makes its channels."""
    order = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    parameters = dict(model.named_parameters())
    rooted = []
    for group in groups:
        known = [s for s in group.slices if s.tensor in order]
        makers = [s for s in known if s.role == "out"]
        matrices = [s for s in makers if sum(n > 1 for n in parameters[s.tensor].shape) > 1]
        weights = [s for s in matrices if s.tensor.endswith("weight")]
        likely = weights or matrices or makers or known
        root = min(likely, key=lambda s: (order[s.tensor], s.index[0, 0]))
        rooted.append((order[root.tensor], int(root.index[0, 0]), root, group))
    rooted.sort(key=lambda item: item[:2])
    found: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for _, _, root, group in rooted:
        picks = any(s.tensor.endswith(f".{SELECTED}") or s.tensor == SELECTED for s in group.slices)
        name = _root_name(model, root.tensor) + (INPUTS if picks else "")
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}:{taken[name]}"
        order_of = np.argsort(root.index[:, 0], kind="stable")
        slices = tuple(
            Slice(tensor=s.tensor, dim=s.dim, role=s.role, index=s.index[order_of])
            for s in group.slices
        )
        found.append(ChannelGroup(name=name, channels=group.channels, slices=slices))
    return found


def _root_name(model: nn.Module, tensor: str) -> str:
    owner, _, attribute = tensor.partition(".parametrizations.")[0].rpartition(".")
    if ".parametrizations." in tensor:
        return tensor.partition(".parametrizations.")[0]
    named = attribute == "weight" or type(model.get_submodule(owner)).__module__.startswith(
        "torch."
    )
    return owner if named and owner else tensor
