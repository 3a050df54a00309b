import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_study
from nets import NETS, build, grouped, same_state
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from autoprune.errors import AutopruneError
from autoprune.pruning.follow import follow
from autoprune.pruning.graph import find_groups
from autoprune.pruning.group_rules import GROUP_RULES, GroupRule, Tie, group_rule
from autoprune.pruning.groups import from_json, to_json
from autoprune.pruning.layers import rule_of
from autoprune.pruning.rules import MEETS_FIXED
from autoprune.study import StudySource, load_study, source_of

WIDTHS = {
    "mlp": {"0": 12, "2": 8},
    "conv_bn": {"0": 8, "3": 12},
    "residual": {"stem": 8, "conv1": 12, "down": 16},
    "depthwise": {"0": 8, "4": 12},
    "dense": {"stem": 6, "convs.0": 4, "convs.1": 4},
    "flatten": {"0": 6, "3": 10},
    "autoencoder": {"0": 8, "2": 4, "4": 10},
    "conv1d": {"0": 8, "4": 6},
    "layer_norm": {"0": 12, "3": 8},
    "squeeze_excite": {"conv": 12, "squeeze": 4},
    "two_inputs": {"left": 8, "right": 6, "middle": 10},
    "dict_input": {"image": 8},
}


@pytest.mark.parametrize("name", NETS)
def test_finds_every_group(name: str) -> None:
    assert grouped(name).channels == WIDTHS[name]


@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_in_a_group_or_blocked(name: str) -> None:
    model, _ = build(name)
    grouping = grouped(name)
    produced = {s.tensor.rpartition(".")[0] for g in grouping.groups for s in g.slices}
    blocked = {b.layer for b in grouping.blocked}
    layers = {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}
    assert layers <= produced | blocked
    for entry in grouping.blocked:
        layer = model.get_submodule(entry.layer)
        assert entry.params == sum(p.numel() for p in layer.parameters(recurse=False))


@pytest.mark.parametrize("name", NETS)
def test_an_entry_belongs_to_one_channel_of_one_group(name: str) -> None:
    state = build(name)[0].state_dict()
    taken: Counter[tuple[str, int, int]] = Counter()
    for group in grouped(name).groups:
        for piece in group.slices:
            assert len(piece.index) == group.channels
            assert piece.index.min() >= 0
            assert piece.index.max() < state[piece.tensor].shape[piece.dim]
            taken.update((piece.tensor, piece.dim, int(entry)) for entry in piece.index.ravel())
    assert set(taken.values()) == {1}


def test_residual_layers_are_coupled() -> None:
    produced = {s.tensor for s in grouped("residual")["stem"].slices if s.role == "out"}
    read = {s.tensor for s in grouped("residual")["stem"].slices if s.role == "in"}
    norms = {f"{bn}.{t}" for bn in ("bn", "bn2") for t in
             ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    assert produced == {"stem.weight", "conv2.weight"} | norms
    assert read == {"conv1.weight", "down.weight", "shortcut.weight"}


def test_a_flattened_channel_is_read_at_all_its_positions() -> None:
    [reader] = [s for s in grouped("flatten")["0"].slices if s.role == "in"]
    assert reader.index.tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(6)]


@pytest.mark.parametrize("name", NETS)
def test_the_model_is_left_alone(name: str) -> None:
    model, example = build(name)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    find_groups(model, example)
    assert same_state(model.state_dict(), before)
    assert all(m.training for m in model.modules())
    assert not next(model.parameters()).requires_grad


@pytest.mark.parametrize("part", ["whole", "a module"])
def test_compiled_models_are_followed_as_any_other(part: str) -> None:
    model, example = build("residual")
    whole = torch.compile(model, backend="eager") if part == "whole" else model
    if part == "a module":
        model.conv1.compile(backend="eager")
    whole(example)  # compiled by now
    found = find_groups(whole, example).channels  # type: ignore[arg-type]
    assert {name.removeprefix("_orig_mod."): n for name, n in found.items()} == WIDTHS["residual"]


@pytest.mark.parametrize("name", NETS)
def test_survives_json(name: str) -> None:
    grouping = grouped(name)
    text = json.dumps(to_json(grouping))
    assert json.dumps(to_json(from_json(json.loads(text)))) == text
    assert from_json(json.loads(text)).channels == grouping.channels


# --- what stays dense ---------------------------------------------------------------------------


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(x).mean(1))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.hidden(x)))


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.body(x))
        return self.head(features), features


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=1).real


class Picked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x[:, 3:4]


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 2, 4, 4, 4).flip(1).reshape(len(x), 8, 4, 4)


def after(*layers: nn.Module) -> nn.Module:
    """Put a convolution before `layers` of 8 channels, and two readers after them."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), *layers, nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )


IMAGE = torch.zeros(2, 3, 4, 4)
BLOCKED = {
    "output": (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(2, 4), "1", "outputs"),
    "features": (Features(), torch.zeros(2, 4), "body", "outputs are the model's outputs"),
    "softmax": (after(nn.Softmax(1)), IMAGE, "0", "a softmax, sum or sort runs over"),
    "unknown": (after(Fourier()), IMAGE, "0", "the operation `_fft_r2c` cannot be followed"),
    "picked": (after(Picked()), IMAGE, "0", "picked by its number"),
    "constant": (after(Constant()), IMAGE, "0", "does not run without them"),
    "weight_norm": (
        nn.Sequential(nn.Linear(4, 8), weight_norm(nn.Linear(8, 2))),
        torch.zeros(2, 4),
        "0",
        "fold the weight norm in",
    ),
    "embedding": (Embedded(), torch.zeros(2, 5, dtype=torch.long), "embedding", "an embedding"),
    "tied": (Tied(), torch.zeros(2, 6), "first", "reads a tensor whose size is fixed"),
    "single": (nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 2)), torch.zeros(2, 4), "0", "single"),
    "unused": (
        nn.ModuleDict({"body": nn.Linear(4, 8), "spare": nn.Linear(4, 4)}),
        torch.zeros(2, 4),
        "spare",
        "nothing in the run reads its outputs",
    ),
}
BLOCKED["unused"][0].forward = BLOCKED["unused"][0]["body"].forward


@pytest.mark.parametrize("case", BLOCKED)
def test_blocks_with_a_reason(case: str) -> None:
    model, example, layer, reason = BLOCKED[case]
    grouping = find_groups(model, example)
    assert layer not in grouping.channels
    assert reason in {b.layer: b.reason for b in grouping.blocked}[layer]


@pytest.mark.parametrize("case", ["unknown", "picked", "softmax", "embedding", "tied"])
def test_what_follows_a_blocked_layer_is_still_found(case: str) -> None:
    model, example, *_ = BLOCKED[case]
    assert find_groups(model, example).groups


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (nn.GroupNorm(1, 8), 8),
        (nn.GroupNorm(4, 8), 4),
        (nn.GroupNorm(8, 8), 8),
        (nn.BatchNorm2d(8), 8),
        (nn.InstanceNorm2d(8, affine=True), 8),
        (nn.Conv2d(8, 8, 1, groups=2), 2),
        (nn.Conv2d(8, 8, 1, groups=8), 8),
        (nn.ConvTranspose2d(8, 8, 1, groups=4), 4),
    ],
)
def test_layers_of_several_groups_lose_whole_ones(layer: nn.Module, channels: int) -> None:
    assert find_groups(after(layer), IMAGE).channels["0"] == channels


def test_keep_takes_layers_by_glob() -> None:
    model, example = build("residual")
    grouping = find_groups(model, example, keep=["conv?", "sh*"])
    assert not grouping.groups  # conv2 is in the stem's group, shortcut in down's
    reasons = {b.layer: b.reason for b in grouping.blocked}
    assert reasons["stem"] == "kept by 'conv?'"
    assert reasons["down"] == "kept by 'sh*'"
    assert set(find_groups(model, example, keep=["down"]).channels) == {"stem", "conv1"}


def test_keep_must_match_something() -> None:
    with pytest.raises(AutopruneError, match=r"'con' matches none of stem, bn, conv1"):
        find_groups(*build("residual"), keep=["con"])


@pytest.mark.parametrize("example", [torch.zeros(2, 5), (torch.zeros(2, 6), torch.zeros(2, 6))])
def test_the_example_must_fit(example: object) -> None:
    with pytest.raises(AutopruneError, match="example input must be what the model is called"):
        find_groups(build("mlp")[0], example)


def test_the_model_must_return_tensors() -> None:
    model = nn.Linear(2, 2)
    model.forward = lambda x: "none"
    with pytest.raises(AutopruneError, match="must return tensors"):
        find_groups(model, torch.zeros(1, 2))


class SoftmaxAfterNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.softmax(self.norm(self.inner(x)), -1))


def test_a_layernorm_does_not_hide_an_operation_that_mixes_channels() -> None:
    grouping = find_groups(SoftmaxAfterNorm(), torch.randn(2, 4))
    reasons = {b.layer: b.reason for b in grouping.blocked}
    assert not grouping.groups
    assert "a softmax, sum or sort runs over its channels" in reasons["inner"]


class Caching(nn.Module):
    """Keeps a tensor of its first run, as modules that compute positions once do."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None
        self.scale, self.inner = nn.Linear(1, 8), nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = self.scale(torch.ones(1, 1)).detach()
        return self.head(self.inner(x) * self.positions)


def test_what_a_model_keeps_of_an_earlier_run_says_nothing_in_a_later_one() -> None:
    def reasons() -> list[str]:
        ledger = follow(model, torch.zeros(2, 4)).ledger
        return list(ledger.reasons(ledger.classes()).values())

    model = Caching()
    assert MEETS_FIXED not in reasons()  # the positions are made as the run is followed
    assert MEETS_FIXED in reasons()  # now they are there, of a size that nothing changes


def test_channels_that_a_pixel_shuffle_spreads_over_space_go_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 8, 1), nn.ReLU())
    assert find_groups(model, torch.randn(2, 3, 4, 4)).channels == {"0": 4}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


class PairRule(GroupRule):
    def asks(self, module: Any) -> Any:
        yield Tie(places=(("left.weight", 0), ("right.weight", 0)))


@pytest.mark.usefixtures("registries")
def test_a_class_that_is_named_has_its_rule_here_and_in_workers(tmp_path: Path) -> None:
    class OfPair(Pair): ...

    assert set(find_groups(OfPair(), torch.randn(2, 4)).channels) == {"left", "right"}
    name = f"{Pair.__module__}.{Pair.__qualname__}"
    group_rule(name)(PairRule)
    assert find_groups(OfPair(), torch.randn(2, 4)).channels == {"left": 8}
    source = source_of(load_study(write_study(tmp_path / "study.py")))
    del GROUP_RULES[name]
    assert isinstance(source, StudySource)
    assert not isinstance(rule_of(Pair()), PairRule)
    source.load()
    assert type(rule_of(Pair())).__name__ == "PairRule"
