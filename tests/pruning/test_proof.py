"""What follows from the model itself: groups that would break it, or change it, are found out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.pruning.cut import cut, load_state
from autoprune.pruning.forward import call
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping
from autoprune.pruning.proof import deafened


def agree(model: nn.Module, grouping: Grouping, example: Any, *widths: int) -> None:
    """Check that a model cut to some channels answers as if the others were not read."""
    keep = dict(zip(grouping.channels, widths, strict=True))
    kept = {n: list(range(c))[-keep[n] :] for n, c in grouping.channels.items()}
    gone = {n: list(range(c))[: -keep[n]] for n, c in grouping.channels.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            call(cut(model, grouping, kept), example),
            call(deafened(model, grouping, gone), example),
        )


def reasons(grouping: Grouping) -> dict[str, str]:
    return {b.layer: b.reason for b in grouping.blocked}


class Shuffled(nn.Module):
    """The unit of ShuffleNet V2 (Ma et al. 2018): two branches, side by side, shuffled."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.shuffle = nn.ChannelShuffle(parts)
        self.next = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x), self.b(x).relu()], 1)
        mixed: Tensor = self.next(self.shuffle(both))
        return mixed


@pytest.mark.parametrize(
    ("parts", "channels"), [(2, {"a": 6}), (3, {"a": 2, "a:2": 2}), (4, {"a": 3})]
)
def test_shuffled_branches_lose_the_same_places(parts: int, channels: dict[str, int]) -> None:
    model, example = Shuffled(parts).eval(), torch.randn(2, 3, 4, 4)
    grouping = find_groups(model, example)
    assert grouping.channels == channels
    for widths in itertools.product(*(range(1, count) for count in channels.values())):
        agree(model, grouping, example, *widths)


class MixedNorm(nn.Module):
    """Normalises over channels without saying so: fewer change the statistics."""

    def __init__(self, head: float) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(5, 12), nn.Linear(12, 3, bias=False)
        nn.init.uniform_(self.head.weight, -head, head)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        answer: Tensor = self.head(F.layer_norm(y, y.shape[-1:]))
        return answer


@pytest.mark.parametrize("head", [1.0, 1e-4, 0.0])
def test_a_head_that_says_nothing_yet_hides_no_fault(head: float) -> None:
    grouping = find_groups(MixedNorm(head), torch.randn(4, 5))
    assert grouping.channels == {}
    assert "mixes its channels" in reasons(grouping)["a"]


class AsWide(nn.Module):
    """Asks for two layers to be as wide as each other, in a number that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 12
        self.a, self.b, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu().reshape(-1, self.hidden)).reshape(-1, self.hidden))


class Scaled(AsWide):
    """Divides by a width of which it cannot be said which layer's it is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu()) / self.hidden**0.5


@pytest.mark.parametrize("kind", [AsWide, Scaled])
def test_layers_that_hold_only_if_others_are_as_wide_are_not_both_cut(
    kind: type[AsWide],
) -> None:
    model, example = kind().eval(), torch.randn(4, 5)
    grouping = find_groups(model, example)
    assert len(grouping.channels) < 2
    for width in (1, 5, 11) if grouping.channels else ():
        agree(model, grouping, example, width)


class Auxiliary(nn.Module):
    """Has a second head in training, as GoogLeNet has (Szegedy et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.extra, self.extra_head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.body, self.head = nn.Conv2d(8, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.stem(x)).relu()
        answer = self.head(self.body(x).relu().mean((2, 3)))
        if not self.training:
            return answer
        return answer, self.extra_head(self.extra(x).relu().mean((2, 3)))


class Variational(nn.Module):
    """Draws what it decodes in training alone (Kingma & Welling 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.decode = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.mean(x)
        if self.training:
            z = z + torch.randn_like(z) * (self.spread(x) / 2).exp()
        decoded: Tensor = self.decode(z)
        return decoded


class Averaging(nn.Module):
    """Keeps a mean of its channels in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.head(x.relu())


@pytest.mark.parametrize(
    ("make", "example", "channels"),
    [
        (Auxiliary, torch.randn(1, 3, 7, 7), {"stem": 8, "extra": 6, "body": 10}),
        (Variational, torch.randn(4, 6), {"mean": 8}),
        (Averaging, torch.randn(4, 6), {"a": 8}),
    ],
)
def test_what_runs_in_training_alone_is_cut_as_well(
    make: Callable[[], nn.Module], example: Tensor, channels: dict[str, int]
) -> None:
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    grouping = find_groups(model, example)
    assert grouping.channels == channels
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    kept = {n: list(range(0, c, 2)) for n, c in channels.items()}
    small = cut(model, grouping, kept).train()
    small(example.repeat(2, *(1,) * (example.dim() - 1)))


def test_what_cannot_train_without_some_channels_keeps_them() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x).relu(), self.b(x).relu()
            if self.training and a.shape[1] != 8:
                raise ValueError("of eight channels")
            return self.head(torch.cat([a, b], 1))

    grouping = find_groups(Fixed(), torch.randn(4, 6))
    assert grouping.channels == {"b": 8}
    assert "train" in reasons(grouping)["a"]


def test_models_that_cannot_train_as_they_are_called_are_pruned_all_the_same() -> None:
    class Wanting(nn.Sequential):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("targets, please")
            answer: Tensor = super().forward(x)
            return answer

    model = Wanting(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert find_groups(model, torch.randn(2, 4)).channels == {"0": 8}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.fc = nn.Sequential(nn.Linear(12, 12), nn.ReLU()), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.fc(self.act(x))
        return answer


def test_a_block_that_shares_a_weight_with_something_outside_cannot_go() -> None:
    model = nn.Sequential(nn.Linear(5, 12), Residual(), Residual(), Residual(), nn.Linear(12, 3))
    model[2].fc.weight = model[1].fc.weight
    grouping = find_groups(model, torch.randn(2, 5))
    assert grouping.blocks == ("3.block",)


def test_no_inputs_are_pruned_unless_asked() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    ).eval()
    example = torch.randn(2, 3, 5, 5)
    grouping = find_groups(model, example)
    assert grouping.channels == {"0": 8, "2": 6}
    agree(model, grouping, example, 3, 2)
    asked = find_groups(model, example, prune_inputs=True)
    assert asked.channels == {"0.inputs": 3, "0": 8, "2": 6}


class Constant(nn.Module):
    """A layer that reads a new tensor alone, whose size is a number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.start, self.head = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.make(x).relu() + self.start(torch.ones(len(x), 6)))
        return answer


@pytest.mark.parametrize("asked", [False, True])
def test_what_a_layer_reads_of_a_new_tensor_is_pruned_only_with_inputs(asked: bool) -> None:
    grouping = find_groups(Constant(), torch.randn(3, 4), prune_inputs=asked)
    assert ("start.inputs" in grouping.channels) == asked
    assert grouping.channels["make"] == 8


class StepByStep(nn.Module):
    """Writes what it makes of each step into a new tensor."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part = part
        self.make, self.read = nn.Linear(4, 16), nn.Linear(part, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], x.shape[1], self.part)
        for step in range(x.shape[1]):
            out[:, step, :16] = self.make(x[:, step]).relu()
        answer: Tensor = self.read(out)
        return answer


def test_what_is_written_into_a_new_tensor_is_read_from_it() -> None:
    model, example = StepByStep(16).eval(), torch.randn(2, 5, 4)
    grouping = find_groups(model, example)
    # The new tensor's size is a number in the code, which nobody can know.
    assert grouping.channels == {}
    assert "reads its outputs" not in reasons(grouping)["make"]
    assert "part of a tensor" in reasons(find_groups(StepByStep(20), example))["make"]


def test_a_parameter_that_stays_dense_is_named_where_others_of_its_module_are_pruned() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 4, 6))
            self.v, self.o = nn.Parameter(torch.randn(24, 10)), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            heads = torch.einsum("bi,ihd->bhd", x, self.w).softmax(-1)
            return self.o((heads.flatten(1) @ self.v).relu())

    grouping = find_groups(Bare(), torch.randn(2, 8))
    assert grouping.channels == {"v": 10}
    assert {b.layer: b.params for b in grouping.blocked} == {"w": 192, "o": 33}


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        answer: Tensor = self.head(self.encoder(self.embed(x), src_key_padding_mask=padding)[:, 0])
        return answer


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_an_encoder_that_was_cut_takes_padding() -> None:
    model, padding = Padded().eval(), torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    example = (torch.randn(2, 7, 5), padding)
    grouping = find_groups(model, example)
    kept = {n: list(range(c)) for n, c in grouping.channels.items()} | {"embed": list(range(6))}
    small = cut(model, grouping, kept)
    again = load_state(model, small.state_dict())
    slow = small(*example)  # gradients are wanted: no fast path
    with torch.inference_mode():
        torch.testing.assert_close(small(*example), slow)
        torch.testing.assert_close(again(*example), slow)
