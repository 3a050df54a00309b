"""Our way into torch's fused AdamW does what `torch.optim` does with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.training.adamw import FusedAdamW

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
