"""Elimination, compared with solving for all weights anew for every channel that could go next.

`test_criteria` compares the criterion on a residual network's convolutions and shared readers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from nets import build, grouped
from torch import Tensor, nn

from autoprune.pruning import moments, readers
from autoprune.pruning.criteria import score_groups
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import collect, top_channels
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import ChannelGroup, Grouping, Slice
from autoprune.pruning.moments import Moments
from autoprune.pruning.obs import RIDGE, Reader, elimination, read_entries
from autoprune.pruning.reconstruct import reconstructed


def mean_square(model: nn.Module, inputs: Any) -> Tensor:
    return model(inputs).square().mean()


def obs(model: nn.Module, grouping: Grouping, *batches: Tensor) -> dict[str, Tensor]:
    evidence = collect(model, grouping, batches=batches, loss=mean_square, moments=True)
    return score_groups("obs", evidence, grouping)


def mixed(rows: int, entries: int) -> Tensor:
    """Draw rows whose entries depend on each other and are not 0 on average."""
    return torch.randn(rows, entries) @ torch.randn(entries, entries) + 1


Case = tuple[Tensor, Tensor, list[list[int]], bool]
"""Rows, weights [outputs, entries], the entries of each channel, whether there is a bias."""


def reader_of(case: Case) -> Reader:
    x, w, index, bias = case
    return Reader.of(w, 1, np.array(index), Moments.of(x, bias=bias))


def least_error(case: Case, channels: Sequence[int]) -> float:
    """Return the least error once the weights on `channels` are zero, by normal equations."""
    x, w, index, bias = case
    x, weights = x.double(), w.double().T
    x = x - x.mean(0) if bias else x
    hessian = x.T @ x / len(x)
    hessian += RIDGE * hessian.diagonal().mean() * torch.eye(len(hessian))
    gone = [e for c in channels for e in index[c]]
    stay = [e for e in range(len(weights)) if e not in gone]
    change = torch.zeros_like(weights)
    change[gone] = -weights[gone]
    wanted = hessian[stay][:, gone] @ weights[gone]
    change[stay] = torch.linalg.solve(hessian[stay][:, stay], wanted)
    return float((change * (hessian @ change)).sum())


def slow_elimination(cases: Sequence[Case]) -> tuple[list[int], list[float]]:
    order: list[int] = []
    made = [0.0]
    left = set(range(len(cases[0][2])))
    while left:
        errors = {c: sum(least_error(case, [*order, c]) for case in cases) for c in left}
        order.append(min(errors, key=lambda c: errors[c]))
        made.append(errors[order[-1]])
        left.remove(order[-1])
    return order, np.diff(made).tolist()


def one_each(count: int) -> list[list[int]]:
    return [[c] for c in range(count)]


CASES = {
    "one entry a channel": lambda: [(mixed(60, 9), torch.randn(4, 9), one_each(9), True)],
    "no bias": lambda: [(mixed(60, 9), torch.randn(4, 9), one_each(9), False)],
    "more outputs than entries": lambda: [(mixed(60, 6), torch.randn(40, 6), one_each(6), True)],
    "fewer rows than entries": lambda: [(mixed(5, 9), torch.randn(4, 9), one_each(9), True)],
    "several entries a channel": lambda: [
        (
            mixed(60, 12),
            torch.randn(4, 12),
            [[0, 7], [1, 2], [3, 11], [4, 9], [5, 6], [8, 10]],
            True,
        )
    ],
    "entries of other groups": lambda: [
        (mixed(60, 12), torch.randn(4, 12), [[11], [2], [5], [0], [7]], True)
    ],
    "several readers": lambda: [
        (mixed(60, 7), torch.randn(4, 7), one_each(7), True),
        (mixed(30, 16), torch.randn(3, 16), [[2 * c, 2 * c + 1] for c in range(7)], False),
    ],
    # More than `PANEL` entries, so that what was put off is written in between.
    "many entries": lambda: [
        (mixed(300, 40), torch.randn(4, 40), [[2 * c, 2 * c + 1] for c in range(20)], True),
        (mixed(300, 60), torch.randn(4, 60), [[3 * c, 3 * c + 2] for c in range(20)], True),
        (mixed(300, 80), torch.randn(4, 80), np.arange(80).reshape(20, 4).tolist(), True),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_eliminates_as_least_squares_would(name: str) -> None:
    cases = CASES[name]()
    order, errors = elimination([reader_of(case) for case in cases])
    expected, made = slow_elimination(cases)
    assert order.tolist() == expected
    torch.testing.assert_close(errors, torch.tensor(made, dtype=errors.dtype), rtol=1e-5, atol=1e-9)


def test_many_channels_are_written_anew_in_between() -> None:
    case = (mixed(200, 150), torch.randn(3, 150), one_each(150), True)
    order, errors = elimination([reader_of(case)])
    assert sorted(order.tolist()) == list(range(150))
    for count in (1, 63, 64, 65, 130, 150):
        made = least_error(case, order[:count].tolist())
        assert float(errors[:count].sum()) == pytest.approx(made, rel=1e-6)


def test_of_copies_all_but_one_go_before_anything_is_lost() -> None:
    once = torch.randn(400, 8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    x = once.repeat(1, 3)[:, order]  # each input three times, mixed up
    source = order % 8
    model, grouping = nn.Linear(24, 5), inputs_of("weight", 24)
    with torch.no_grad():
        model.weight[:, source < 2] *= 5  # two of the eight matter most
    kept = top_channels(obs(model, grouping, x)["g"], 8)
    assert sorted(source[list(kept)].tolist()) == list(range(8))
    # A criterion that looks at one input at a time does not.
    evidence = collect(model, grouping, batches=[x], loss=mean_square)
    apart = top_channels(score_groups("wanda", evidence, grouping)["g"], 8)
    assert set(source[list(apart)].tolist()) >= {0, 1}
    assert len(set(source[list(apart)].tolist())) < 8


def inputs_of(tensor: str, channels: int, *, times: int = 1) -> Grouping:
    pieces = [
        Slice(tensor=tensor, dim=1, role="in", index=np.arange(channels)[:, None] + channels * i)
        for i in range(times)
    ]
    group = ChannelGroup(name="g", channels=channels, slices=tuple(pieces))
    return Grouping(groups=(group,), blocked=(), shapes={}, positions={})


def test_scores_rise_with_the_order() -> None:
    case = (mixed(60, 9), torch.randn(4, 9), one_each(9), True)
    model = nn.Linear(9, 4)
    with torch.no_grad():
        model.weight.copy_(case[1])
    score = obs(model, inputs_of("weight", 9), case[0])["g"]
    order, made = slow_elimination([case])
    assert score.argsort().tolist() == order
    made = np.cumsum(made) / np.sum(made)
    expected = torch.tensor(np.arange(1, 10) / 9 + made, dtype=torch.float32)
    torch.testing.assert_close(score[order], expected)


def test_a_layer_may_read_a_channel_twice() -> None:
    grouping = inputs_of("weight", 4, times=2)
    assert read_entries(grouping["g"])["weight", 1].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    model, x = nn.Linear(8, 3), mixed(50, 8)
    case = (x, model.weight.detach(), [[c, c + 4] for c in range(4)], True)
    assert obs(model, grouping, x)["g"].argsort().tolist() == slow_elimination([case])[0]


def test_what_is_constant_costs_nothing_where_there_is_a_bias() -> None:
    x = mixed(50, 6)
    x[:, 2] = 7.0
    for bias in (True, False):
        model = nn.Linear(6, 3, bias=bias)
        with torch.no_grad():
            model.weight[:, 2] = 1.0
        first = int(obs(model, inputs_of("weight", 6), x)["g"].argmin())
        assert (first == 2) == bias


def test_inputs_that_are_always_zero_are_told_apart_by_their_weights() -> None:
    model = nn.Linear(6, 3)
    score = obs(model, inputs_of("weight", 6), torch.zeros(20, 6))["g"]
    assert torch.equal(score.argsort(), model.weight.detach().norm(dim=0).argsort())


def test_layers_that_read_too_much_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = build("mlp")
    grouping = grouped("mlp")  # "0" is read by 12 entries, "2" by 8
    usual = obs(model, grouping, example)
    monkeypatch.setattr(readers, "MOST_ENTRIES", 8)
    found = obs(model, grouping, example)
    l2 = score_groups("l2", collect(model, grouping), grouping)
    assert torch.equal(found["0"], l2["0"])
    assert not torch.equal(usual["0"], l2["0"])
    assert torch.equal(found["2"], usual["2"])


def test_a_transposed_convolution_reads_a_channel_an_entry() -> None:
    model, _ = build("autoencoder")
    x = torch.randn(6, 1, 8, 8)
    read = model[:4](x).detach()  # [6, 4, 4, 4]
    rows = read.movedim(1, -1).reshape(-1, 4)
    weight = model[4].weight.detach()  # [4, 10, 2, 2]
    case = (rows, weight.flatten(1).T, one_each(4), True)
    found = obs(model, grouped("autoencoder"), x)["2"]
    assert moments.entries_of(model[4]) == 4
    assert found.argsort().tolist() == slow_elimination([case])[0]


def test_reconstruction_gains_by_it() -> None:
    torch.manual_seed(0)
    factors = torch.randn(300, 6)
    x = (factors @ torch.randn(6, 40)).tanh()  # 40 inputs of 6 facts
    model = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))
    grouping = find_groups(model, x[:2], prune_inputs=True)
    evidence = collect(model, grouping, batches=[x[:200]], loss=mean_square, moments=True)
    gaps = {}
    for name in ("obs", "wanda", "l2", "taylor", "random"):
        scores = score_groups(name, evidence, grouping)
        kept = {n: top_channels(s, {"0": 16}.get(n, 10)) for n, s in scores.items()}
        small = cut(model, grouping, kept)
        small = reconstructed(model, small, grouping, kept, [x[:200]])
        with torch.no_grad():
            gaps[name] = float((small(x[200:]) - model(x[200:])).square().mean())
    assert gaps["obs"] == min(gaps.values())
