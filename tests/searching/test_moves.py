import numpy as np
import pytest
from nets import grouped

from autoprune import Space
from autoprune.pruning.cost import CostModel
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.history import Finished
from autoprune.searching.lineage import covers
from autoprune.searching.moves import Moves
from autoprune.searching.recipes import Recipes
from autoprune.searching.space import SearchSpace

CHANNELS = grouped("mlp").channels
ALLOCATOR = Allocator(CostModel(grouped("mlp")))
SPACE = SearchSpace(channels=CHANNELS, space=Space(epochs=(1, 8)), has_dropout=False)
RECIPES = Recipes(SPACE.distributions, by_size=True)


def finished(number: int, share: float) -> Finished:
    widths = ALLOCATOR.widths(round(share * ALLOCATOR.dense_params), Shape())
    params = ALLOCATOR.cost.params(widths)
    return Finished(
        number=number,
        widths=widths,
        params=params,
        score=0.5 + share / 2,
        costs={"params": params},
        epochs=2,
        lineage_epochs=2,
        recipe=RECIPES.usual(share),
    )


MEMBERS = [finished(number, share) for number, share in enumerate((0.1, 0.3, 0.5, 0.8))]


def moves(*, least_params: int = 0, inherit: bool = True) -> Moves:
    return Moves(
        MEMBERS,
        MEMBERS,
        cost="params",
        space=SPACE,
        allocator=ALLOCATOR,
        recipes=RECIPES,
        least_params=least_params,
        inherit=inherit,
    )


def test_a_proposal_nests_in_its_parent() -> None:
    found = moves().draw_many(np.random.default_rng(0), 50)
    parents = [p.parent for p in found]
    assert None not in parents
    assert len({parent.number for parent in parents if parent}) > 1
    assert all(p.parent and covers(p.parent.widths, p.widths) for p in found)


def test_without_inheritance_every_proposal_is_cut_from_the_dense_model() -> None:
    one, other = (
        moves(inherit=inherit).draw_many(np.random.default_rng(0), 50) for inherit in (True, False)
    )
    assert [p.parent for p in other] == [None] * 50
    assert [p.widths for p in other] == [p.widths for p in one]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_of_many_none_is_too_small(share: float) -> None:
    least = round(share * ALLOCATOR.dense_params)
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    known = moves(least_params=least)
    drawn = [known.draw(rng) for _ in range(60)]
    sizes = [ALLOCATOR.cost.params(p.widths) for p in drawn]
    assert min(sizes) < least  # such as the smallest member, trained on
    found = known.draw_many(again, 60)
    assert found == [p for p, size in zip(drawn, sizes, strict=True) if size >= least]
    assert 0 < len(found) < 60


def test_where_each_is_too_small_none_is_left_out() -> None:
    known = moves(least_params=2 * ALLOCATOR.dense_params)
    assert len(known.draw_many(np.random.default_rng(0), 9)) == 9
