"""AdamW does what torch's does, bit for bit; Muon what torch's does, on kernels too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from autoprune import FineTune
from autoprune.training import optimizers
from autoprune.training.optimise import OneCycle
from autoprune.training.optimizers import (
    MOMENTUM,
    UPDATE_RMS,
    FusedAdamW,
    Muon,
    matrices,
    orthogonal,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def parameters(device: str) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = [(3, 5), (7,), (), (2, 4, 3, 3), (6, 1)]
    found = [nn.Parameter(torch.randn(shape).to(device)) for shape in shapes]
    found[-2].data = found[-2].data.to(memory_format=torch.channels_last)
    found[-1].data = found[-1].data.double()
    return found


def groups(of: list[nn.Parameter]) -> list[dict[str, object]]:
    return [
        {"params": of[:1], "weight_decay": 0.1},
        {"params": of[1:2], "weight_decay": 0.0, "lr": 0.3},
        {"params": of[2:]},
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_steps_as_torch_does_bit_for_bit(device: str) -> None:
    ours, theirs = parameters(device), parameters(device)
    own = FusedAdamW(groups(ours), lr=0.02, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups(theirs), lr=0.02, weight_decay=0.05, fused=True)
    for step in range(8):
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad = other.grad = None
            if (step + number) % 3:  # the others have no part in this step's loss
                gradient = torch.randn_like(other)
                mine.grad, other.grad = gradient.clone(), gradient.clone()
        for group, like in zip(own.param_groups, optimizer.param_groups, strict=True):
            group["lr"] = like["lr"] = like["lr"] * 0.9
        own.step()
        optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other)
    for mine, other in zip(ours, theirs, strict=True):
        assert own.state[mine].keys() == optimizer.state[other].keys()
        assert all(
            torch.equal(own.state[mine][n], optimizer.state[other][n]) for n in own.state[mine]
        )


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_go_or_become_zero(to_none: bool) -> None:
    weight, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = FusedAdamW([{"params": [weight, unused]}], lr=0.1)
    weight.square().sum().backward()
    optimizer.zero_grad(set_to_none=to_none)
    expected: Tensor | None = None if to_none else torch.zeros(3)
    assert weight.grad is expected or torch.equal(weight.grad, expected)
    assert unused.grad is None
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state


TORCHS_OWN = getattr(torch.optim, "Muon", None)


@pytest.mark.skipif(TORCHS_OWN is None, reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(6, 6), (5, 12), (12, 5), (1, 7)])
def test_muon_moves_a_matrix_as_torchs_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    rate = 0.02 * UPDATE_RMS * math.sqrt(max(shape))  # torch's way leaves this factor out
    own = Muon([{"params": [ours]}], lr=0.02, weight_decay=0.1)
    other = TORCHS_OWN(
        [theirs], lr=rate, momentum=MOMENTUM, weight_decay=0.1 * 0.02 / rate, ns_steps=4
    )
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        own.step()
        other.step()
    moved = (ours - theirs).norm() / (5 * rate * math.sqrt(min(shape)))
    assert moved < 0.02  # torch's iterates in bfloat16


def test_muon_takes_a_kernel_as_a_matrix() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(4, 3, 5, 2)
    kernel.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
    for parameter in (kernel, matrix):
        Muon([{"params": [parameter]}], lr=0.1).step()
    assert torch.allclose(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (8, 8), (1, 5)])
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape) * 1e-3))
    assert 0.5 < values.min() <= values.max() < 1.25
    assert not orthogonal(torch.zeros(shape)).any()


def test_orthogonal_is_computed_in_the_precision_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 20)
    full = orthogonal(matrix)
    mixed = torch.autocast("cpu", dtype=torch.bfloat16)
    monkeypatch.setattr(optimizers, "autocast", {matrix.device: mixed}.__getitem__)
    found = orthogonal(matrix)
    assert found.dtype == torch.float32
    assert not torch.equal(found, full)
    assert torch.allclose(found, full, atol=0.05)


class Kinds(nn.Module):
    """A layer of each kind that has matrices, or only seems to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.conv = nn.Conv2d(2, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.single = nn.Conv1d(1, 6, 1)
        self.table = nn.Embedding(7, 4)
        self.tied = nn.Linear(4, 7)
        self.tied.weight = self.table.weight
        self.normed = weight_norm(nn.Linear(4, 3))
        self.frozen = nn.Linear(4, 3)
        self.frozen.weight.requires_grad_(False)
        self.norm = nn.LayerNorm(4)
        self.bare = nn.Parameter(torch.randn(1, 5, 4))


def test_muon_is_for_linear_layers_and_convolutions() -> None:
    model = Kinds()
    assert [id(w) for w in matrices(model)] == [id(model.linear.weight), id(model.conv.weight)]
    settings = FineTune(epochs=1, lr=0.1, optimizer="muon", weight_decay=0.3)
    muon, adamw = OneCycle(model, settings, 10, []).optimizers
    parts = [p for o in (muon, adamw) for group in o.param_groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, parts)) == sorted(map(id, trained))
    assert {id(p) for group in muon.param_groups for p in group["params"]} == {
        id(w) for w in matrices(model)
    }
    assert muon.param_groups[0]["weight_decay"] == 0.3
    assert [type(o) for o in OneCycle(model, FineTune(epochs=1, lr=0.1), 10, []).optimizers] == [
        FusedAdamW
    ]


@pytest.mark.parametrize("model", [nn.Linear(4, 3, bias=False), nn.LayerNorm(4)])
def test_a_model_may_have_nothing_for_one_of_the_two(model: nn.Module) -> None:
    running = OneCycle(model, FineTune(epochs=1, lr=0.1, optimizer="muon"), 10, [])
    (optimizer,) = running.optimizers
    assert running.lr == pytest.approx(0.01)  # one cycle begins at a tenth
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(5, 4)).square().sum().backward()
    running.step()
    running.after_step()
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.055)
