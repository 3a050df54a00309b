"""Tiny networks, one of each kind, and an example input of two samples for each."""

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.down_bn = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = F.relu(self.down_bn(self.down(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 1),
        nn.PReLU(12),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(2))
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norms[-1](x)).mean((2, 3)))


def flatten() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 10), nn.ReLU(),
        nn.Linear(10, 3),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 10, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(10, 1, 3, padding=1),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.squeeze = nn.Conv2d(12, 4, 1)
        self.excite = nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head((x * torch.sigmoid(gate)).mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 8)
        self.right = nn.Linear(5, 6)
        self.middle = nn.Linear(14, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.left(left)), F.relu(self.right(right))], 1)
        return self.head(F.relu(self.middle(both)))


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, 8, 3)
        self.table = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, *, table: Tensor, image: Tensor) -> Tensor:
        return self.head(F.relu(self.image(image)).mean((2, 3)) + F.relu(self.table(table)))


IMAGE = torch.zeros(2, 3, 8, 8)

NETS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (mlp, torch.zeros(2, 6)),
    "conv_bn": (conv_bn, IMAGE),
    "residual": (Residual, IMAGE),
    "depthwise": (depthwise, IMAGE),
    "dense": (Dense, IMAGE),
    "flatten": (flatten, torch.zeros(2, 1, 6, 6)),
    "autoencoder": (autoencoder, torch.zeros(2, 1, 8, 8)),
    "conv1d": (conv1d, torch.zeros(2, 2, 16)),
    "layer_norm": (layer_norm, torch.zeros(2, 6)),
    "squeeze_excite": (SqueezeExcite, IMAGE),
    "two_inputs": (TwoInputs, (torch.zeros(2, 4), torch.zeros(2, 5))),
    "dict_input": (
        DictInput,
        {"table": torch.zeros(2, 4), "image": torch.zeros(2, 1, 6, 6)},
    ),
}


def build(name: str) -> tuple[nn.Module, Any]:
    """Return a seeded net in evaluation mode, its BatchNorms no identity, and noise to run it on.

    A fresh BatchNorm (mean 0, scale 1) would hide one that was sliced at the wrong channels.
    """
    factory, example = NETS[name]
    torch.manual_seed(0)
    model = factory().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, (nn.LayerNorm, nn.PReLU)):
            nn.init.normal_(module.weight, 0.5, 0.5)
    return model, noise_like(example)


def noise_like(example: Any, samples: int = 2) -> Any:
    if isinstance(example, dict):
        return {key: noise_like(value, samples) for key, value in example.items()}
    if isinstance(example, tuple):
        return tuple(noise_like(value, samples) for value in example)
    return torch.randn(samples, *example.shape[1:])


@cache
def grouped(name: str) -> Grouping:
    """Return a net's groups, found once for all tests."""
    return find_groups(*build(name))


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


def jitter(inputs: Tensor) -> Tensor:
    """Augment as users do: with what is drawn from every global random state there is."""
    noise = torch.from_numpy(np.random.normal(0, 0.3, inputs.shape)).float()
    return inputs * random.uniform(0.8, 1.2) + noise + 0.1 * torch.rand(1)


def kept_channels(grouping: Grouping) -> st.SearchStrategy[dict[str, tuple[int, ...]]]:
    """Draw any channels to keep, at least one in each group."""
    return st.fixed_dictionaries(
        {
            name: st.sets(st.integers(0, count - 1), min_size=1).map(lambda s: tuple(sorted(s)))
            for name, count in grouping.channels.items()
        }
    )


def widths_of(kept: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: len(channels) for name, channels in kept.items()}
