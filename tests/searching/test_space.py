import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autoprune import AutopruneError, FineTune, Space
from autoprune.pruning.criteria import CRITERIA
from autoprune.searching.space import SearchSpace, with_criteria

CHANNELS = {"stem": 8, "blocks.0": 13, "head": 2}


def search_space(
    space: Space | None = None, *, has_dropout: bool = True, **more: Any
) -> SearchSpace:
    return SearchSpace(channels=CHANNELS, space=space or Space(), has_dropout=has_dropout, **more)


# --- widths -------------------------------------------------------------------------------------


@st.composite
def groups_and_rules(draw: st.DrawFn) -> tuple[int, Space]:
    channels = draw(st.integers(1, 3_000))
    rules = Space(
        max_sparsity=draw(st.sampled_from([0.1, 0.5, 0.9, 1.0])),
        round_to=draw(st.sampled_from([1, 2, 7, 8, 16])),
        min_width=draw(st.integers(1, 40)),
    )
    return channels, rules


@given(drawn=groups_and_rules(), data=st.data())
def test_every_allowed_width_can_be_asked_for(
    drawn: tuple[int, Space], data: st.DataObject
) -> None:
    channels, rules = drawn
    space = SearchSpace(channels={"g": channels}, space=rules, has_dropout=False)
    width = data.draw(st.sampled_from(space.allowed["g"].tolist()))
    params = space.sparsities({"g": width})
    distribution = space.distributions["sparsity/g"]
    assert distribution.low <= params["sparsity/g"] <= distribution.high
    assert space.widths(params) == {"g": width}


@given(drawn=groups_and_rules(), share=st.floats(0, 1))
def test_any_sparsity_gives_the_nearest_width_within_the_rules(
    drawn: tuple[int, Space], share: float
) -> None:
    channels, rules = drawn
    space = SearchSpace(channels={"g": channels}, space=rules, has_dropout=False)
    sparsity = share * space.distributions["sparsity/g"].high
    width = space.widths({"sparsity/g": sparsity})["g"]
    assert isinstance(rules.min_width, int)

    def fits(w: int) -> bool:
        multiple = w % rules.round_to == 0 and w >= rules.min_width
        return w == channels or (multiple and w >= round((1 - rules.max_sparsity) * channels))

    assert fits(width)
    wanted = (1 - sparsity) * channels
    gap = min(abs(w - wanted) for w in range(1, channels + 1) if fits(w))
    assert abs(width - wanted) <= gap + 1e-9


def test_widths_are_multiples_and_narrow_groups_keep_all() -> None:
    space = search_space(Space(round_to=4))
    assert {n: a.tolist() for n, a in space.allowed.items()} == {
        "stem": [4, 8],
        "blocks.0": [4, 8, 12, 13],
        "head": [2],
    }
    assert space.minimum_widths() == {"stem": 4, "blocks.0": 4, "head": 2}


def test_the_fewest_channels_of_every_group_or_by_name() -> None:
    assert search_space(Space(min_width=5)).minimum_widths() == {
        "stem": 5,
        "blocks.0": 5,
        "head": 2,
    }
    named = Space(min_width={"blocks.0": 9, "head": 2}, round_to=4)
    assert search_space(named).minimum_widths() == {"stem": 4, "blocks.0": 12, "head": 2}


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"haed": 2}, r"`space.min_width`: Unknown group 'haed'.*Did you mean 'head'"),
        ({"stem": 9}, r"`space.min_width` must be at most .* 'stem' has 8 and 9 are asked for"),
    ],
)
def test_a_fewest_that_does_not_fit_the_model_is_refused(
    widths: dict[str, int], message: str
) -> None:
    with pytest.raises(AutopruneError, match=message):
        search_space(Space(min_width=widths))


@pytest.mark.parametrize("most", [0.3, 0.5, 0.99, 1.0])
def test_no_group_loses_more_than_allowed(most: float) -> None:
    space = search_space(Space(max_sparsity=most))
    highest = {n: d.high for n, d in space.distributions.items() if n.startswith("sparsity/")}
    assert all(high <= most for high in highest.values())
    assert space.minimum_widths() == space.widths(highest)
    assert space.minimum_widths() == {
        name: max(1, round((1 - most) * count)) for name, count in CHANNELS.items()
    }


# --- distributions ------------------------------------------------------------------------------


def test_pairs_are_searched_and_numbers_are_fixed() -> None:
    everything = Space(epochs=(2, 9), lr=(1e-4, 1e-1), dropout=(0.0, 0.4), batch_size=(16, 32))
    found = search_space(everything).distributions
    assert list(found)[:3] == ["sparsity/stem", "sparsity/blocks.0", "sparsity/head"]
    assert found["criterion"] == CategoricalDistribution(everything.criteria)
    assert found["batch_size"] == CategoricalDistribution((16, 32))
    assert found["epochs"] == IntDistribution(2, 9, log=True)
    assert found["lr"] == FloatDistribution(1e-4, 1e-1, log=True)
    assert found["dropout"] == FloatDistribution(0.0, 0.4)

    nothing = Space(
        criteria=("l1",), lr=1e-3, weight_decay=0.0, distill_weight=0.5, temperature=2.0,
        dropout=0.1, batch_size=16,
    )  # fmt: skip
    assert list(search_space(nothing).distributions) == [
        "sparsity/stem", "sparsity/blocks.0", "sparsity/head", "criterion",
    ]  # fmt: skip


def test_a_range_from_zero_is_not_logarithmic() -> None:
    found = search_space(Space(weight_decay=(0.0, 0.1))).distributions
    assert found["weight_decay"] == FloatDistribution(0.0, 0.1)


def test_dropout_is_searched_only_where_there_is_some() -> None:
    assert "dropout" in search_space().distributions
    assert "dropout" not in search_space(has_dropout=False).distributions
    assert "dropout" not in search_space(Space(dropout=None)).distributions


def test_a_loaders_batch_size_is_not_searched() -> None:
    space = search_space(fixed_batch_size=48)
    assert "batch_size" not in space.distributions
    params = {**space.sparsities(CHANNELS), "criterion": "l1", "lr": 1e-3, "weight_decay": 0.0,
              "distill_weight": 0.5, "temperature": 2.0, "dropout": 0.1}  # fmt: skip
    assert space.plan(params).finetune.batch_size == 48


# --- plans --------------------------------------------------------------------------------------


def test_a_plan_takes_what_was_searched_and_what_is_fixed() -> None:
    space = search_space(Space(epochs=7, temperature=3.0, batch_size=(16, 32)))
    plan = space.plan(
        {
            "sparsity/stem": 0.5,
            "sparsity/blocks.0": 0.0,
            "sparsity/head": 0.5,
            "criterion": "fisher",
            "batch_size": 32,
            "lr": 0.01,
            "weight_decay": 1e-4,
            "distill_weight": 0.25,
            "dropout": 0.2,
        }
    )
    assert plan.widths == {"stem": 4, "blocks.0": 13, "head": 1}
    assert (plan.criterion, plan.kept) == ("fisher", None)
    assert plan.finetune == FineTune(
        epochs=7, lr=0.01, batch_size=32, weight_decay=1e-4, distill_weight=0.25,
        temperature=3.0, dropout=0.2,
    )  # fmt: skip


def test_optimizers_are_searched_where_there_are_two() -> None:
    assert "optimizer" not in search_space(Space(optimizer="muon")).distributions
    both = search_space(Space(optimizer=("adamw", "muon")))
    assert both.distributions["optimizer"] == CategoricalDistribution(("adamw", "muon"))
    params = {**both.sparsities(CHANNELS), "criterion": "l1", "batch_size": 32, "lr": 0.01,
              "weight_decay": 0.0, "distill_weight": 0.5, "temperature": 2.0,
              "dropout": 0.1}  # fmt: skip
    for name in ("adamw", "muon"):
        fixed = search_space(Space(optimizer=name))
        plan = both.plan({**params, "optimizer": name})
        assert plan.finetune.optimizer == name
        assert fixed.plan(params) == plan
        assert both.params(plan)["optimizer"] == name


def test_where_the_space_names_no_optimizer_the_usual_one_trains() -> None:
    params = {**search_space().sparsities(CHANNELS), "criterion": "l1", "batch_size": 32,
              "lr": 0.01, "weight_decay": 0.0, "distill_weight": 0.5, "temperature": 2.0,
              "dropout": 0.1}  # fmt: skip
    for usual in ("adamw", "muon"):
        space = search_space(usual_optimizer=usual)
        assert space.optimizer == space.plan(params).finetune.optimizer == usual
        assert "optimizer" not in space.distributions
        named = search_space(Space(optimizer="adamw"), usual_optimizer=usual)
        assert named.optimizer == named.plan(params).finetune.optimizer == "adamw"


def test_a_net_without_dropout_gets_none() -> None:
    space = search_space(Space(dropout=0.2), has_dropout=False)
    params = {**space.sparsities(CHANNELS), "criterion": "l1", "lr": 1e-3, "weight_decay": 0.0,
              "distill_weight": 0.5, "temperature": 2.0}  # fmt: skip
    assert space.plan(params).finetune.dropout is None


# --- the user's space ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criteria": ()}, "must name at least one criterion"),
        ({"criteria": ("l1", "tailor")}, "Did you mean 'taylor'"),
        ({"optimizer": ()}, "must name at least one optimizer"),
        ({"optimizer": "moon"}, "Did you mean 'muon'"),
        ({"optimizer": ("adamw", "sgd")}, "'sgd'"),
        ({"optimizer": ("adamw", None)}, "Unknown optimizer None"),
        ({"criteria": None}, "Unknown criterion None"),
        ({"criteria": "tailor"}, "Unknown criterion 'tailor'"),
        ({"criteria": (None,)}, "Unknown criterion None"),
        ({"sparsify": (3,)}, "Unknown sparsifier 3"),
        ({"lr": (1e-2, 1e-3)}, r"`space.lr` must be a number or \(low, high\) with low < high"),
        ({"lr": (1e-3, 1e-3)}, "low < high"),
        ({"lr": (1e-3, 1e-2, 1e-1)}, "low < high"),
        ({"lr": "fast"}, "but is 'fast'"),
        ({"lr": 0.0}, "`space.lr` must be finite and at least 1e-12, but is 0"),
        ({"lr": math.nan}, "`space.lr` must be finite"),
        ({"lr": (1e-3, math.inf)}, "`space.lr` must be finite"),
        ({"sparsify_strength": math.nan}, "`space.sparsify_strength` must lie between"),
        ({"epochs": 0}, "`space.epochs` must be finite and at least 1, but is 0"),
        ({"epochs": True}, "must be a whole number"),
        ({"epochs": 2.5}, "must be a whole number"),
        ({"lr": None}, "must be a number"),
        ({"max_sparsity": (0.2, 0.5)}, "must be a number, but"),
        ({"batch_size": 16.5}, "one or more whole numbers"),
        ({"batch_size": 0}, "`space.batch_size` must be one or more whole numbers"),
        ({"batch_size": ()}, "`space.batch_size` must be one or more whole numbers"),
        ({"batch_size": (16, -1)}, "`space.batch_size` must be one or more whole numbers"),
        ({"weight_decay": -0.1}, "`space.weight_decay` must be finite and at least 0"),
        ({"distill_weight": (0.5, 1.5)}, "`space.distill_weight` must lie between 0 and 1"),
        ({"temperature": 0}, "`space.temperature` must be finite and at least 0.001"),
        ({"dropout": 0.99}, "`space.dropout` must lie between 0 and 0.95"),
        ({"max_sparsity": 0.0}, "`space.max_sparsity` must lie between"),
        ({"max_sparsity": 1.1}, "`space.max_sparsity` must lie between"),
        ({"round_to": 0}, "`space.round_to` must be finite and at least 1"),
        ({"round_to": 2.0}, "`space.round_to` must be a whole number"),
        ({"min_width": 0}, "`space.min_width` must be whole numbers of at least 1"),
        ({"min_width": {"stem": 1.5}}, "`space.min_width` must be whole numbers of at least 1"),
    ],
)
def test_bad_spaces_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        Space(**settings)


def test_a_lone_name_is_that_name() -> None:
    assert Space(criteria="taylor", sparsify="l1") == Space(criteria=("taylor",), sparsify=("l1",))  # type: ignore[arg-type]
    assert with_criteria(Space(), "taylor").criteria == ("taylor",)


def test_the_default_criteria_are_seven() -> None:
    # Not chance, not what is slow, not what orders channels as `l2` does, not the newcomers.
    others = {"random", "hessian", "obs", "lamp", "wanda", "flap", "apoz"}
    assert set(Space().criteria) == set(CRITERIA) - others


def test_other_criteria_leave_the_rest() -> None:
    space = with_criteria(Space(lr=0.1, epochs=(2, 3)), ["l1"])
    assert space == Space(lr=0.1, epochs=(2, 3), criteria=("l1",))
