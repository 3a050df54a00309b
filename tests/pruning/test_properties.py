"""Random networks under random plans: cutting is masking, and costs are the real counts."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from masking import masked
from nets import build, grouped, kept_channels, same_state, widths_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_case import unsettle

from autoprune.errors import AutopruneError
from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import count_params
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping, restrict
from autoprune.pruning.plan import GRANULARITIES, FineTune, Plan, Sparsify
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.space import SearchSpace, Space
from autoprune.searching.widths import allowed_widths

Kept = dict[str, tuple[int, ...]]
many = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # explaining a failure takes minutes
)
TOLERANCE = 1e-5

# --- random networks ----------------------------------------------------------------------------

ACTIVATIONS = {"relu": F.relu, "sigmoid": torch.sigmoid, "gelu": F.gelu, "none": lambda x: x}
SIDE = 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a network, as a value that hypothesis can print and shrink."""

    kind: str
    width: int
    kernel: int
    activation: str
    norm: bool
    bias: bool


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole network."""

    steps: tuple[Step, ...]
    tail: str
    hidden: int


class Block(nn.Module):
    """A step between feature maps, or between rows of features."""

    def __init__(self, step: Step, channels: int, *, rows: bool) -> None:
        super().__init__()
        self.step, self.rows = step, rows
        self.width = {
            "plain": step.width, "concat": channels + step.width, "grouped": 2 * step.width,
        }.get(step.kind, channels)  # fmt: skip
        middle = step.width if step.kind in ("residual", "gated") else 0
        if step.kind in ("plain", "concat"):
            self.layer = self._layer(channels, step.width)
        elif step.kind == "depthwise":
            self.layer = self._layer(channels, channels, groups=channels)
        elif step.kind == "grouped":
            # Two pairs of halves: what feeds a grouped convolution must be even, too.
            self.first = self._layer(channels, 2 * step.width)
            self.layer = self._layer(2 * step.width, 2 * step.width, groups=2)
        elif middle:
            self.first, self.layer = self._layer(channels, middle), self._layer(middle, channels)
        norms = nn.BatchNorm1d if rows else nn.BatchNorm2d
        fresh = step.width if step.kind == "concat" else self.width
        self.norm = norms(fresh) if step.norm and step.kind != "pool" else nn.Identity()

    def _layer(self, inputs: int, outputs: int, groups: int = 1) -> nn.Module:
        step = self.step
        if self.rows:
            return nn.Linear(inputs, outputs, bias=step.bias)
        return nn.Conv2d(
            inputs, outputs, step.kernel, padding=step.kernel // 2, groups=groups, bias=step.bias
        )

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.step.activation]
        match self.step.kind:
            case "pool":
                return F.avg_pool2d(x, 2, ceil_mode=True) if x.shape[-1] > 1 else x
            case "residual":
                return act(x + self.norm(self.layer(F.relu(self.first(x)))))
            case "gated":
                return self.norm(x * torch.sigmoid(self.layer(act(self.first(x)))))
            case "concat":
                return torch.cat([x, act(self.norm(self.layer(x)))], dim=1)
            case "grouped":
                return act(self.norm(self.layer(F.relu(self.first(x)))))
            case _:
                return act(self.norm(self.layer(x)))


class Random(nn.Module):
    """The network of a recipe: a stem, steps, a tail that flattens or averages, a head."""

    def __init__(self, recipe: Recipe, *, rows: bool) -> None:
        super().__init__()
        self.rows, self.tail = rows, recipe.tail
        width = 6
        self.stem = nn.Linear(5, width) if rows else nn.Conv2d(3, width, 3, padding=1)
        blocks, side = [], SIDE
        for step in recipe.steps:
            blocks.append(Block(step, width, rows=rows))
            width = blocks[-1].width
            side = math.ceil(side / 2) if step.kind == "pool" else side
        self.blocks = nn.Sequential(*blocks)
        flat = width * side * side if not rows and recipe.tail == "flatten" else width
        self.hidden = nn.Linear(flat, recipe.hidden)
        self.head = nn.Linear(recipe.hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        if not self.rows:
            x = x.flatten(1) if self.tail == "flatten" else x.mean((2, 3))
        return self.head(F.relu(self.hidden(x)))


def steps(*kinds: str) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        kind=st.sampled_from(kinds),
        width=st.integers(2, 7),
        kernel=st.sampled_from([1, 3]),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        norm=st.booleans(),
        bias=st.booleans(),
    )


def recipes(*kinds: str) -> st.SearchStrategy[Recipe]:
    return st.builds(
        Recipe,
        steps=st.lists(steps(*kinds), min_size=1, max_size=5).map(tuple),
        tail=st.sampled_from(["flatten", "average"]),
        hidden=st.integers(2, 9),
    )


IMAGE_STEPS = ("plain", "residual", "concat", "gated", "depthwise", "grouped", "pool")
ROW_STEPS = ("plain", "residual", "concat", "gated")


def made(recipe: Recipe, *, rows: bool) -> tuple[nn.Module, Tensor]:
    """Return a recipe's network in double precision, and two samples for it."""
    torch.manual_seed(0)
    model = Random(recipe, rows=rows)
    unsettle(model)
    inputs = torch.randn(2, 5) if rows else torch.randn(2, 3, SIDE, SIDE)
    return model.eval().double(), inputs.double()


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


def counted_macs(model: nn.Module, inputs: Tensor) -> int:
    """Count multiply-accumulates per sample by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        run(model, inputs)
    per_sample, rest = divmod(counter.get_total_flops(), 2 * len(inputs))
    assert rest == 0
    return per_sample


def check(model: nn.Module, inputs: Tensor, data: st.DataObject) -> None:
    """Find a network's groups and cut it twice by drawn plans; everything must be exact."""
    before = {n: t.clone() for n, t in model.state_dict().items()}
    grouping = find_groups(model, inputs)
    kept = data.draw(kept_channels(grouping))
    small = cut(model, grouping, kept)
    cost = CostModel(grouping)
    assert cost.params(widths_of(kept)) == count_params(small)
    assert cost.macs(widths_of(kept)) == counted_macs(small, inputs)
    assert cost.macs(grouping.channels) == counted_macs(model, inputs)
    expected = run(masked(model, grouping, kept), inputs)
    scale = max(1.0, float(expected.abs().max()))
    assert float((run(small, inputs) - expected).abs().max()) <= TOLERANCE * scale

    between = restrict(grouping, kept)
    further = data.draw(kept_channels(between))
    final = {name: tuple(kept[name][i] for i in further[name]) for name in kept}
    chained, direct = cut(small, between, further), cut(model, grouping, final)
    assert same_state(chained.state_dict(), direct.state_dict())
    assert torch.equal(run(chained, inputs), run(direct, inputs))
    assert same_state(model.state_dict(), before)

    produced = {s.tensor for g in grouping.groups for s in g.slices if s.role == "out"}
    weights = {f"{n}.weight" for n, m in model.named_modules() if hasattr(m, "weight")}
    assert weights - {"head.weight"} <= produced, grouping.blocked


@many
@given(recipe=recipes(*IMAGE_STEPS), data=st.data())
def test_a_random_convolutional_network_is_cut_exactly(recipe: Recipe, data: st.DataObject) -> None:
    check(*made(recipe, rows=False), data)


@many
@given(recipe=recipes(*ROW_STEPS), data=st.data())
def test_a_random_network_of_linear_layers_is_cut_exactly(
    recipe: Recipe, data: st.DataObject
) -> None:
    check(*made(recipe, rows=True), data)


# --- random plans -------------------------------------------------------------------------------

GROUPING = grouped("residual")
COST = CostModel(GROUPING)
positive = st.floats(1e-9, 1e3)
PLANS = st.builds(
    Plan,
    widths=st.fixed_dictionaries({n: st.integers(1, c) for n, c in GROUPING.channels.items()}),
    criterion=st.text(min_size=1),
    finetune=st.builds(
        FineTune,
        epochs=st.integers(1, 1000),
        lr=positive,
        batch_size=st.integers(1, 4096),
        weight_decay=st.floats(0, 1),
        distill_weight=st.floats(0, 1),
        temperature=st.floats(1e-3, 1e3),
        dropout=st.none() | st.floats(0, 0.95),
    ),
    sparsify=st.none()
    | st.builds(Sparsify, method=st.text(min_size=1), epochs=st.integers(1, 99), strength=positive),
    steps=st.integers(1, 20),
    reconstruct=st.booleans(),
    granularity=st.sampled_from(GRANULARITIES),
)


@many
@given(plan=PLANS, kept=st.none() | kept_channels(GROUPING))
def test_any_plan_survives_json(plan: Plan, kept: Kept | None) -> None:
    plan = plan if kept is None else plan.with_kept(kept)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.to_json() == plan.to_json()


@many
@given(
    sparsity=st.fixed_dictionaries({n: st.floats(0, 1) for n in GROUPING.channels}),
    most=st.floats(1e-3, 1),
)
def test_a_trial_asks_for_no_less_than_the_minimum(sparsity: dict[str, float], most: float) -> None:
    space = SearchSpace(
        channels=GROUPING.channels, space=Space(max_sparsity=most), has_dropout=False
    )
    limits = {n: d.high for n, d in space.distributions.items() if n.startswith("sparsity/")}
    asked = {f"sparsity/{n}": min(s, limits[f"sparsity/{n}"]) for n, s in sparsity.items()}
    widths, lowest = space.widths(asked), space.minimum_widths()
    for name, count in GROUPING.channels.items():
        assert 1 <= lowest[name] <= widths[name] <= count
    assert COST.params(widths) >= COST.params(lowest)


@many
@given(
    lowest=st.fixed_dictionaries({n: st.integers(1, c) for n, c in GROUPING.channels.items()}),
    params=st.integers(0, 2 * COST.params(GROUPING.channels)),
    shape=st.builds(Shape, eta=st.floats(0, 2), beta=st.floats(-1, 1), kappa=st.floats(-1, 1)),
)
def test_an_allocation_keeps_to_the_minimum(
    lowest: dict[str, int], params: int, shape: Shape
) -> None:
    allowed = {
        n: allowed_widths(c, lowest=lowest[n]) for n, c in GROUPING.channels.items() if n in lowest
    }
    widths = Allocator(COST, allowed=allowed).widths(params, shape)
    assert all(lowest[n] <= widths[n] <= c for n, c in GROUPING.channels.items())
    assert COST.params(widths) <= max(params, COST.params(lowest))


# --- bad plans ----------------------------------------------------------------------------------


def spoiled(kept: Kept, fault: str, group: str, channels: int) -> dict[str, Any]:
    """Return a good plan's kept channels with one fault in `group`."""
    good = kept[group]
    return {
        "no such group": kept | {f"{group}.x": good},
        "a group is missing": {n: k for n, k in kept.items() if n != group},
        "another name": {f"{n}.x" if n == group else n: k for n, k in kept.items()},
        "nothing stays": kept | {group: ()},
        "too high": kept | {group: (*good, channels)},
        "far too high": kept | {group: (*good, 10**6)},
        "negative": kept | {group: (-1, *good)},
        "twice": kept | {group: (good[0], *good)},
        "out of order": kept | {group: (channels - 1, 0)},
        "no group at all": {},
    }[fault]


FAULTS = (
    "no such group", "a group is missing", "another name", "nothing stays", "too high",
    "far too high", "negative", "twice", "out of order", "no group at all",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=10)
@given(kept=kept_channels(GROUPING), group=st.sampled_from(sorted(GROUPING.channels)))
def test_a_spoiled_plan_is_refused(fault: str, kept: Kept, group: str) -> None:
    model, _ = build("residual")
    before = copy.deepcopy(model.state_dict())
    bad = spoiled(kept, fault, group, GROUPING.channels[group])
    with pytest.raises(AutopruneError) as caught:
        cut(model, GROUPING, bad)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert group in said or fault == "no group at all"
    assert same_state(model.state_dict(), before)


@given(kept=kept_channels(grouped("conv_bn")))
def test_another_models_plan_is_refused(kept: Kept) -> None:
    with pytest.raises(AutopruneError, match="another model's plan"):
        cut(build("residual")[0], GROUPING, kept)


@given(kept=kept_channels(GROUPING), data=st.data())
def test_a_parents_plan_does_not_fit_its_child(kept: Kept, data: st.DataObject) -> None:
    """A plan counts the channels of the model that it was made for."""
    child: Grouping = restrict(GROUPING, {**kept, "stem": (0, 1)})
    plan = data.draw(kept_channels(child))
    with pytest.raises(AutopruneError, match="Group 'stem' has channels 0 to 1"):
        cut(build("residual")[0], child, {**plan, "stem": (0, 1, 2)})
