"""Labels: which channel each entry of a tensor belongs to, and what running a model says of them.

Every entry along every dimension of every parameter starts as an *atom* of its own. Running the
model ties atoms: what is added to each other, or multiplied and summed over, can only be removed
together. Each tensor under way carries label arrays, one per independent system of channels: an
array has the tensor's number of dimensions, is 1 wide where it does not vary, and holds atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

FIXED, WILD = 0, -1
"""No atom: an entry that cannot go; and one that adapts to whatever it meets (new zeros)."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of a tensor's entries."""

    arrays: tuple[Tensor, ...] = ()
    base: int = FIXED
    """What the dimensions that no array varies along are made of: `FIXED` or `WILD`."""
    leaf: str = ""
    """The parameter it is; `PART` if it was made from parameters alone, empty otherwise."""
    is_input: bool = False
    """Whether it is one of the model's inputs, or was made from one without any layer."""
    debts: tuple[tuple[Tensor, str], ...] = ()
    """Atoms that must stay, and why, if anything is made of this tensor."""

    def moved(self, arrays: Iterable[Tensor]) -> Labels:
        return replace(self, arrays=tuple(a for a in arrays if a.numel() > 1))


PART = "*"


@dataclass(frozen=True)
class Leaf:
    """The atoms along one dimension of a parameter or buffer."""

    tensor: str
    dim: int
    start: int
    size: int

    @property
    def atoms(self) -> slice:
        return slice(self.start, self.start + self.size)


def varying(array: Tensor) -> set[int]:
    """Return the dimensions along which `array` differs."""
    return {dim for dim, size in enumerate(array.shape) if size > 1}


def compress(array: Tensor) -> Tensor:
    """Make `array` 1 wide along every dimension in which it does not differ."""
    for dim, size in enumerate(array.shape):
        if size > 1:
            first = array.narrow(dim, 0, 1)
            if bool((array == first).all()):
                array = first
    return array


def aligned(array: Tensor, ndim: int) -> Tensor:
    """Give `array` leading dimensions of 1, as broadcasting does."""
    return array.reshape((1,) * (ndim - array.dim()) + array.shape)


class Ledger:
    """What is known of the atoms: ties, those that must stay and why, those that are read."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.joint: list[Tensor] = []
        """Arrays of tensors in which channels spread over several dimensions."""
        self._edges: list[Tensor] = []
        self._frozen: list[tuple[IntArray, str]] = []
        self._read: list[IntArray] = []
        self._made: list[IntArray] = []
        self._count = 1

    def label(self, name: str, tensor: Tensor) -> Labels:
        """Give the entries along each dimension of a parameter or buffer atoms of their own."""
        arrays = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                self.leaves.append(Leaf(name, dim, self._count, size))
                atoms = torch.arange(self._count, self._count + size)
                arrays.append(atoms.reshape([size if d == dim else 1 for d in range(tensor.dim())]))
                self._count += size
        return Labels(arrays=tuple(arrays), leaf=name)

    def atoms(self, tensor: str, dim: int) -> Tensor:
        """Return the atoms along a dimension of a parameter or buffer, in order."""
        leaf = next(leaf for leaf in self.leaves if (leaf.tensor, leaf.dim) == (tensor, dim))
        return torch.arange(leaf.start, leaf.start + leaf.size)

    def tie(self, a: Tensor, b: Tensor, reason: str = "") -> Tensor:
        """Tie two broadcastable arrays entry by entry; return what holds for both."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        both = (a > 0) & (b > 0) & (a != b)
        if bool(both.any()):
            self._edges.append(torch.stack([a[both], b[both]]))
        self.freeze(a[(a > 0) & (b == FIXED)], reason)
        self.freeze(b[(b > 0) & (a == FIXED)], reason)
        return torch.where(a == WILD, b, a)

    def freeze(self, atoms: Tensor, reason: str = "") -> None:
        """Say that atoms must stay, and why if that may be news."""
        found = atoms[atoms > 0]
        if found.numel():
            self._frozen.append((found.reshape(-1).numpy(), reason))

    def freeze_all(self, labels: Labels, reason: str) -> None:
        for array in labels.arrays:
            self.freeze(array, reason)

    def settle_debts(self, labels: Labels) -> None:
        for atoms, reason in labels.debts:
            self.freeze(atoms, reason)

    def read(self, atoms: Tensor) -> None:
        """Say that these entries of a parameter read channels, rather than make them."""
        self._read.append(atoms.reshape(-1).numpy())

    def make(self, atoms: Tensor) -> None:
        """Say that these entries of a parameter make channels, whatever else they do."""
        self._made.append(atoms.reshape(-1).numpy())

    def note_joint(self, labels: Labels) -> Labels:
        """Remember arrays in which channels spread over several dimensions; return `labels`."""
        self.joint.extend(a for a in labels.arrays if len(varying(a)) > 1)
        return labels

    def join(self, parts: Sequence[tuple[Labels, Sequence[int]]], reason: str) -> Labels:
        """Tie the labels of tensors that are combined entry by entry, with broadcasting.

        `parts` are labels with the shapes of their tensors.
        """
        ndim = max(len(shape) for _, shape in parts)
        arrays: list[Tensor] = []
        for labels, _ in parts:
            for array in (aligned(a, ndim) for a in labels.arrays):
                known = next((i for i, a in enumerate(arrays) if varying(a) & varying(array)), None)
                if known is None:
                    arrays.append(array)
                    continue
                merged = self.tie(arrays[known], array, reason)
                fewest = min((arrays[known], array), key=lambda a: len(varying(a)))
                arrays[known] = merged if merged.shape == fewest.shape else fewest
        for labels, shape in parts:
            size = (1,) * (ndim - len(shape)) + tuple(shape)
            own = {d for a in labels.arrays for d in varying(aligned(a, ndim))}
            for array in arrays:
                dims = varying(array)
                fixed = [d for d in dims if size[d] != 1]
                if labels.base == FIXED and fixed and not dims & own:
                    self._fix(array, fixed, reason)
        solid = [labels for labels, _ in parts if labels.base == FIXED]
        leaf = ""
        if solid and all(labels.leaf for labels in solid):
            leaf = solid[0].leaf if len(parts) == 1 else PART
        return Labels(
            arrays=tuple(arrays),
            base=FIXED if solid else WILD,
            leaf=leaf,
            is_input=bool(solid) and all(labels.is_input for labels in solid),
        )

    def _fix(self, array: Tensor, fixed: Sequence[int], reason: str) -> None:
        """Say that nothing can go along some dimensions: at most whole slices along the others.

        Rotary embeddings (Su et al. 2021) fix the size of a head, and whole heads may go.
        """
        first = array
        for dim in fixed:
            first = first.narrow(dim, 0, 1)
        if first.numel() == 1:
            self.freeze(array, reason)
        else:
            self.tie(first, array, reason)

    # --- what came out ----------------------------------------------------------------------

    def mark(self) -> int:
        return len(self._edges)

    def undo(self, mark: int) -> None:
        """Forget the ties made since `mark`."""
        del self._edges[mark:]

    def classes(self) -> IntArray:
        """Return, by atom, the number of its class: atoms that can only be removed together."""
        if not self._edges:
            return np.arange(self._count)
        a, b = torch.cat(self._edges, dim=1).numpy()
        graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self._count, self._count))
        found: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
        return found

    def reasons(self, classes: IntArray) -> dict[int, str]:
        """Return, by class that must stay, why."""
        why: dict[int, str] = {}
        for atoms, reason in self._frozen:
            for number in np.unique(classes[atoms]).tolist():
                why[number] = why.get(number) or reason
        return why

    def readers(self) -> npt.NDArray[np.bool_]:
        """Return, by atom, whether it reads channels."""
        return self._marked(self._read)

    def makers(self) -> npt.NDArray[np.bool_]:
        """Return, by atom, whether it makes channels of what a parameter is multiplied with."""
        return self._marked(self._made)

    def _marked(self, marks: Sequence[IntArray]) -> npt.NDArray[np.bool_]:
        found = np.zeros(self._count, dtype=np.bool_)
        for atoms in marks:
            found[atoms[atoms > 0]] = True
        return found
