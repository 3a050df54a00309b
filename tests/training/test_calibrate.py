import copy

import pytest
import torch
from nets import build, noise_like, same_state
from torch import Tensor, nn

from autoprune.training.calibrate import recalibrate
from autoprune.training.task import Batch


def batches(count: int, samples: int = 16) -> list[Batch]:
    return [Batch(inputs=3 + 2 * torch.randn(samples, 4)) for _ in range(count)]


def stale(momentum: float | None = 0.1) -> nn.Module:
    """A model whose BatchNorms remember statistics that are no longer true."""
    model = nn.Sequential(
        nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6)
    )
    for norm in (model[0], model[3]):
        norm.running_mean.fill_(100)
        norm.running_var.fill_(100)
        norm.num_batches_tracked.fill_(50)
    return model.train()


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    means = torch.stack([p.mean(0) for p in parts]).mean(0)
    return means, torch.stack([p.var(0) for p in parts]).mean(0)


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_those_of_the_batches(count: int) -> None:
    model, seen = stale(), batches(count)
    recalibrate(model, seen)
    with torch.no_grad():
        hidden = []
        for batch in seen:
            x = batch.inputs
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + model[0].eps).sqrt()
            hidden.append(model[2](model[1](x)))
    for norm, parts in ((model[0], [b.inputs for b in seen]), (model[3], hidden)):
        mean, variance = moments(parts)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_settings_are_restored(momentum: float | None) -> None:
    model = stale(momentum)
    recalibrate(model, batches(2))
    assert model[0].momentum == momentum
    assert model[3].momentum == 0.1
    assert not any(m.training for m in model.modules())


def test_weights_are_left_alone() -> None:
    model = stale()
    before = [p.clone() for p in model.parameters()]
    recalibrate(model, batches(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_dropout_stays_off() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4)).train()
    [batch] = batches(1)
    recalibrate(model, [batch])
    torch.testing.assert_close(model[1].running_mean, batch.inputs.mean(0))


def test_norms_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, [])
    assert same_state(model.state_dict(), before)


@pytest.mark.parametrize("name", ["residual", "conv1d"])
def test_convolutions_and_named_inputs(name: str) -> None:
    model, example = build(name)
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, [Batch(inputs=noise_like(example, 8))])
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    running = {n for n in before if "running" in n or "tracked" in n}
    assert changed == running
