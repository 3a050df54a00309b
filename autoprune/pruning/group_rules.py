"""Rules: what a kind of module asks for beyond what following its operations shows.

All layers of an `nn.LSTM` have one hidden size, an attention module counts its heads. A rule says
so, and sets the module's attributes from the shapes of its tensors after a cut. Add your own with
`@group_rule(MyModule)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

ASKS = "autoprune_asks"
"""Attribute of a module that may hold more `Tie`s and `Stay`s than its class's rule asks for."""


@dataclass(frozen=True, kw_only=True)
class Tie:
    """Entries of a module's tensors that can only go together.

    Entry ``i`` of every one of `places`, a tensor's name in the module and a dimension, goes with
    entry ``i`` of the others; with `block`, so do each `block` entries in a row.
    """

    places: tuple[tuple[str, int], ...]
    block: int = 1


@dataclass(frozen=True, kw_only=True)
class Stay:
    """Entries along a dimension of a module's tensor that must stay, and why."""

    tensor: str
    dim: int
    reason: str


class GroupRule:
    """What a kind of module asks for. Subclass it and register it with `@group_rule`.

    Examples
    --------
    >>> class Twins(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8)
    ...         self.width = 8
    >>> @group_rule(Twins)
    ... class TwinsRule(GroupRule):
    ...     def asks(self, module):
    ...         yield Tie(places=(("left.weight", 0), ("right.weight", 0)))
    ...     def fit(self, module):
    ...         module.width = module.left.weight.shape[0]
    >>> del GROUP_RULES[Twins]
    """

    def asks(self, module: Any) -> Iterator[Tie | Stay]:
        """Yield what must go together or stay, beyond what the operations show."""
        yield from ()

    def fit(self, module: Any) -> None:
        """Make the module's attributes agree with the shapes of its tensors, in place.

        Modules are fitted before their children: a child's attributes still say what was.
        """


GROUP_RULES: dict[type[nn.Module] | str, GroupRule] = {}
"""By class, or for one of a package that need not be there by its full name."""


def group_rule(kind: type[nn.Module] | str) -> Callable[[type[GroupRule]], type[GroupRule]]:
    """Register a rule for `kind` and its subclasses; the nearest class's rule counts.

    A class is given by itself, or by the name of its module and its own
    (``"transformers.pytorch_utils.Conv1D"``), so that it need not be imported.
    """

    def register(rule: type[GroupRule]) -> type[GroupRule]:
        GROUP_RULES[kind] = rule()
        return rule

    return register
