import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, build, grouped, kept_channels, widths_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import call, without_fast_path
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import (
    ChannelGroup,
    Grouping,
    Product,
    Slice,
    from_json,
    restrict,
    to_json,
)


def counted_macs(model: nn.Module, inputs: Any, samples: int = 2) -> int:
    """Count multiply-accumulates per sample as the layers run."""
    total = 0

    def count(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, nn.ConvTranspose2d):
            kernel = int(np.prod(layer.kernel_size))
            total += args[0].numel() * kernel * layer.out_channels // layer.groups
        else:
            kernel = int(np.prod(layer.kernel_size))
            total += output.numel() * kernel * layer.in_channels // layer.groups

    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, layers)]
    with torch.no_grad():
        call(model, inputs)
    for hook in hooks:
        hook.remove()
    assert total % samples == 0
    return total // samples


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_costs_are_those_of_the_cut_model(name: str, data: st.DataObject) -> None:
    model, inputs = build(name)
    kept = data.draw(kept_channels(grouped(name)))
    small = cut(model, grouped(name), kept)
    cost, widths = CostModel(grouped(name)), widths_of(kept)
    assert cost.params(widths) == sum(p.numel() for p in small.parameters())
    assert cost.macs(widths) == counted_macs(small, inputs)

    again = CostModel(restrict(grouped(name), kept))
    assert again.params(widths) == cost.params(widths)
    assert again.macs(widths) == cost.macs(widths)


@pytest.mark.parametrize("name", NETS)
def test_many_plans_at_once_cost_what_each_does(name: str) -> None:
    cost = CostModel(grouped(name))
    rng = np.random.default_rng(0)
    rows = rng.integers(1, cost.channels + 1, size=(20, len(cost.names)))
    plans = [dict(zip(cost.names, row.tolist(), strict=True)) for row in rows]
    assert cost.params_of(rows).tolist() == [cost.params(plan) for plan in plans]
    assert cost.macs_of(rows).tolist() == [cost.macs(plan) for plan in plans]
    assert all((cost.row(plan) == row).all() for plan, row in zip(plans, rows, strict=True))


def chain(channels: list[int], *, kernel: int, copies: int) -> Grouping:
    """A made-up network: each layer reads the one before, flattened to `copies` entries each."""
    groups, shapes, positions = [], {}, {}
    for number, (before, count) in enumerate(zip([3, *channels], [*channels, 10], strict=True)):
        entries = before * (copies if number else 1)
        shapes[f"{number}.weight"] = (count, entries, kernel, kernel)
        shapes[f"{number}.bias"] = (count,)
        positions[f"{number}.weight"] = (Product(extents=(), times=Fraction(10**4 + number)),)
    for number, count in enumerate(channels):
        out = np.arange(count)[:, None]
        read = np.arange(count * copies).reshape(count, copies)
        slices = (
            Slice(tensor=f"{number}.weight", dim=0, role="out", index=out),
            Slice(tensor=f"{number}.bias", dim=0, role="out", index=out),
            Slice(tensor=f"{number + 1}.weight", dim=1, role="in", index=read),
        )
        groups.append(ChannelGroup(name=str(number), channels=count, slices=slices))
    return Grouping(groups=tuple(groups), blocked=(), shapes=shapes, positions=positions)


@given(data=st.data(), kernel=st.integers(1, 7), copies=st.integers(1, 49))
def test_large_costs_are_exact(data: st.DataObject, kernel: int, copies: int) -> None:
    channels = data.draw(st.lists(st.integers(1, 5_000), min_size=1, max_size=6))
    widths = [data.draw(st.integers(1, count)) for count in channels]
    cost = CostModel(chain(channels, kernel=kernel, copies=copies))
    params = macs = 0
    for number, (before, count) in enumerate(zip([3, *widths], [*widths, 10], strict=True)):
        weights = count * before * (copies if number else 1) * kernel**2
        params += weights + count
        macs += weights * (10**4 + number)
    named = dict(zip(cost.names, widths, strict=True))
    assert (cost.params(named), cost.macs(named)) == (params, macs)


def test_ten_thousand_plans_of_a_large_network_take_less_than_a_second() -> None:
    cost = CostModel(chain([128 + 16 * n for n in range(80)], kernel=3, copies=1))
    rng = np.random.default_rng(0)
    rows = rng.integers(1, cost.channels + 1, size=(10_000, len(cost.names)))
    assert cost.params(dict(zip(cost.names, cost.channels.tolist(), strict=True))) > 25_000_000
    began = time.process_time()
    params, macs = cost.params_of(rows), cost.macs_of(rows)
    assert time.process_time() - began < 1.0
    assert (params > 0).all()
    assert (macs > params).all()


def test_costs_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 2)
    )  # fmt: skip
    cost = CostModel(find_groups(model, torch.zeros(2, 3, 4, 4)))
    assert cost.params({"0": 5}) == (3 * 9 * 5 + 5) + 2 * 5 + (5 * 4 * 2 + 2)
    assert cost.macs({"0": 5}) == 3 * 9 * 5 * 4 + 5 * 4 * 2


def _places(grouping: Grouping) -> dict[str, Fraction]:
    """Return the places that each weight is applied at, where no group changes how many."""
    assert not any(p.extents for each in grouping.positions.values() for p in each)
    return {n: sum((p.times for p in each), Fraction(0)) for n, each in grouping.positions.items()}


class Mixer(nn.Module):
    """Mixes places with a weight that is applied at each channel (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 12, 3, stride=3, bias=False)
        self.narrow, self.wide = nn.Linear(9, 20, bias=False), nn.Linear(20, 9, bias=False)
        self.head = nn.Linear(12, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2)
        x = x + self.wide(self.narrow(x).relu())
        return self.head(x.mean(2))


@pytest.mark.parametrize("widths", [(12, 20), (6, 20), (1, 20), (12, 7), (5, 3)])
def test_weights_that_are_applied_at_each_channel_cost_less_with_fewer(
    widths: tuple[int, int],
) -> None:
    model, example = Mixer().eval(), torch.randn(2, 1, 9, 9)
    grouping = find_groups(model, example)
    assert grouping.channels == {"embed": 12, "narrow": 20}
    kept = {n: list(range(k)) for n, k in zip(grouping.channels, widths, strict=True)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cut(model, grouping, kept)(example)
    truth = counter.get_total_flops() // 2 // 2
    stored = from_json(to_json(grouping))
    for known in (grouping, stored):
        assert CostModel(known).macs(dict(zip(grouping.channels, widths, strict=True))) == truth
    restricted = CostModel(restrict(stored, kept))
    assert restricted.macs(dict(zip(grouping.channels, widths, strict=True))) == truth


def test_a_layer_used_twice_is_multiplied_twice_and_stored_once() -> None:
    shared = nn.Linear(5, 5)
    model = nn.Sequential(nn.Linear(4, 5), shared, nn.ReLU(), shared)
    positions = _places(find_groups(model, torch.zeros(3, 4)))
    assert positions == {"0.weight": 1, "1.weight": 2}


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_costs_are_per_sample(samples: int) -> None:
    model, _ = build("autoencoder")
    positions = _places(find_groups(model, torch.zeros(samples, 1, 8, 8)))
    assert positions == {"0.weight": 16, "2.weight": 16, "4.weight": 16, "6.weight": 64}


def test_attention_of_sequences_first_is_counted_exactly() -> None:
    # Its first dimension is not the samples': the total is divided, not each layer's share.
    attended = Attended(nn.MultiheadAttention(6, 2, bias=False)).eval()
    example = torch.randn(5, 3, 6)
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain, without_fast_path():
        attended(example)
    grouping = find_groups(attended, example)
    assert CostModel(grouping).macs(grouping.channels) == counter.get_total_flops() // 2 // 5


class Attended(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention, self.head = attention, nn.Linear(6, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x)[0].mean(0))


def test_counting_leaves_no_hooks() -> None:
    model, inputs = build("residual")
    find_groups(model, inputs)
    assert not any(m._forward_hooks for m in model.modules())
    assert not any("_autoprune_labels" in p.__dict__ for p in model.parameters())
