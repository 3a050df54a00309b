"""How our sampler spends a budget: each field is one idea, so that each can be switched off."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.errors import AutopruneError


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How `PruningSampler` spends a budget.

    Raises
    ------
    AutopruneError
        If a value breaks its rule.

    Examples
    --------
    >>> Strategy(scouts=0, chain_share=1.0)  # one descending chain, and nothing else
    Strategy(try_rates=True, scouts=0, chain_share=1.0, depth_first=True, ...)
    """

    try_rates: bool = True
    """Whether a search begins by trying learning rates on models of one size, for as few epochs as
    the space allows: the best becomes the usual one. Only where the space has many, and the budget
    is ten times as much as that takes."""
    scouts: int = 5
    """Sizes of the first descent, over the whole range with as few epochs as the space allows: a
    front is there early. 0 is without."""
    chain_share: float | None = None
    """Share of the budget that the descending chain takes; the rest refines the front. None is
    half of it, or more where that is too little for a chain of 16 sizes."""
    depth_first: bool = True
    """Whether the chain drops residual blocks as it shrinks, where they may be dropped: a small
    network does better shallow."""
    recipe_by_size: bool = True
    """Whether the smaller a model, the less it is asked to do what the dense one does, which it
    cannot (Mirzadeh et al. 2020), and the higher its learning rate, which it bears."""
    foresight: bool = True
    """Whether refinement takes what a surrogate expects the most of, per epoch; else at random."""
    proposals: int = 64
    """Among how many proposals it chooses."""

    def __post_init__(self) -> None:
        for name, low in (("scouts", 0), ("proposals", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise AutopruneError(
                    f"`strategy.{name}` must be a whole number of at least {low}, but is {value!r}."
                )
        share = self.chain_share
        if share is not None and not 0 <= share <= 1:
            raise AutopruneError(
                f"`strategy.chain_share` must be between 0 and 1, or None, but is {share!r}."
            )
