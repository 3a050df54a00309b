"""The four tasks of the front benchmark: data, dense network and how it is trained.

Fashion-MNIST is Debian's package `dataset-fashion-mnist`; digits come with scikit-learn. Nothing is
downloaded.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune import FineTune, SupervisedTask
from autoprune.pruning.plan import OptimizerName
from autoprune.study import load_study

FASHION = Path("/usr/share/datasets/fashion-mnist")
VALID = slice(8_000, 10_000)
"""Validation images, of the file of training images."""
MUON = "-muon"
"""How the name of a task ends that is the same with Muon instead of AdamW."""


@dataclass(frozen=True, kw_only=True)
class FrontTask:
    """A dense network, its data, and how many epochs a method may spend on it."""

    name: str
    title: str
    model: Callable[[], nn.Module]
    data: Callable[[int], SupervisedTask]
    """Takes how many training images there are."""
    images: int
    """Training images: an epoch."""
    example: Tensor
    dense: FineTune
    epochs: int
    """Of fine-tuning, in all, for each method."""
    optimizer: OptimizerName = "adamw"
    """Of every method's fine-tuning; the rest of the recipe is tuned for it."""
    dense_of: str | None = None
    """The task whose dense models these are; None for its own."""


def with_muon(task: FrontTask) -> FrontTask:
    """Return a task with the same dense models, which every method fine-tunes with Muon."""
    return replace(
        task,
        name=task.name + MUON,
        title=f"{task.title}, with Muon",
        optimizer="muon",
        dense_of=task.name,
    )


# --- data ---------------------------------------------------------------------------------------


def idx(name: str) -> np.ndarray:
    """Read a gzipped IDX file of bytes (LeCun's format): type, dimensions, sizes, values."""
    content = gzip.decompress((FASHION / name).read_bytes())
    dimensions = content[3]
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def halved(images: np.ndarray) -> Tensor:
    """Average 2x2 pixels: [n, 28, 28] bytes to [n, 1, 14, 14] in [0, 1]."""
    return F.avg_pool2d(torch.from_numpy(images / np.float32(255)).unsqueeze(1), 2)


def fashion(count: int) -> SupervisedTask:
    """Fashion-MNIST at 14x14: `count` images for training, 2,000 for validation, all for test."""
    images = halved(idx("train-images-idx3-ubyte.gz")[: VALID.stop])
    labels = torch.from_numpy(idx("train-labels-idx1-ubyte.gz")[: VALID.stop].astype(np.int64))
    test = halved(idx("t10k-images-idx3-ubyte.gz"))
    test_labels = torch.from_numpy(idx("t10k-labels-idx1-ubyte.gz").astype(np.int64))
    mean, std = images[:count].mean(), images[:count].std()
    return SupervisedTask(
        train=((images[:count] - mean) / std, labels[:count]),
        valid=((images[VALID] - mean) / std, labels[VALID]),
        test=((test - mean) / std, test_labels),
    )


def digits(count: int) -> SupervisedTask:
    """The built-in study's data, or the first `count` of its training images."""
    task = load_study("digits").task
    assert isinstance(task, SupervisedTask)
    (train,) = task.batches("train", batch_size=10_000, seed=None)
    (valid,) = task.batches("valid", batch_size=10_000, seed=None)
    (test,) = task.batches("test", batch_size=10_000, seed=None)
    return SupervisedTask(
        train=(train.inputs[:count], train.targets[:count]),
        valid=(valid.inputs, valid.targets),
        test=(test.inputs, test.targets),
    )


# --- networks -----------------------------------------------------------------------------------


def residual_network() -> nn.Module:
    """The built-in study's: stem 16, residual blocks 16-32-64-64, 151,738 parameters."""
    return load_study("digits").build()


def conv_norm(inputs: int, outputs: int, kernel: int, **how: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **how)
    return conv, nn.BatchNorm2d(outputs)


class Inverted(nn.Module):
    """Sandler et al. 2018, fig. 3: 1x1 expansion, 3x3 depthwise, linear 1x1 projection."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, inner, 1),
            nn.ReLU(),
            *conv_norm(inner, inner, 3, stride=stride, groups=inner),
            nn.ReLU(),
            *conv_norm(inner, outputs, 1),
        )
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class MobileNet(nn.Module):
    """Depthwise-separable: five inverted residuals between a stem and a last 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(16, 64, 24, 1), (24, 96, 24, 1), (24, 96, 48, 2)]
        shapes += [(48, 288, 48, 1), (48, 288, 48, 1)]
        self.stem = nn.Sequential(*conv_norm(1, 16, 3, stride=2), nn.ReLU())
        self.blocks = nn.Sequential(*(Inverted(*shape) for shape in shapes))
        self.last = nn.Sequential(*conv_norm(48, 160, 1), nn.ReLU())
        self.head = nn.Linear(160, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention; what the projections are cut to decides the size of a head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Dosovitskiy et al. 2021, eq. 2 and 3: attention and MLP, each with a norm before it."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, hidden)
        self.project = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.project(F.gelu(self.expand(self.norm2(x))))


class VisionTransformer(nn.Module):
    """25 overlapping patches of 4x4 pixels, the mean of the tokens to the head."""

    def __init__(self, dim: int = 64, heads: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, 3, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 25, dim))
        self.layers = nn.Sequential(*(Encoder(dim, heads, 2 * dim) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(tokens)).mean(1))


SMALL = torch.zeros(2, 1, 14, 14)
ADAMW_TASKS = {
    task.name: task
    for task in (
        FrontTask(
            name="resnet",
            title="Fashion-MNIST, ResNet",
            model=residual_network,
            data=fashion,
            images=8_000,
            example=SMALL,
            dense=FineTune(epochs=15, lr=3e-3, batch_size=64),
            epochs=100,
        ),
        FrontTask(
            name="mobile",
            title="Fashion-MNIST, depthwise-separable",
            model=MobileNet,
            data=fashion,
            images=4_000,
            example=SMALL,
            dense=FineTune(epochs=20, lr=5e-3, batch_size=64),
            epochs=50,
        ),
        FrontTask(
            name="vit",
            title="Fashion-MNIST, ViT",
            model=VisionTransformer,
            data=fashion,
            images=4_000,
            example=SMALL,
            dense=FineTune(epochs=20, lr=2e-3, batch_size=64),
            epochs=50,
        ),
        FrontTask(
            name="digits",
            title="Digits, ResNet",
            model=residual_network,
            data=digits,
            images=1_078,
            example=torch.zeros(2, 1, 8, 8),
            dense=FineTune(epochs=30, lr=3e-3, batch_size=64),
            epochs=300,
        ),
    )
}
TASKS = ADAMW_TASKS | {task.name: task for task in map(with_muon, ADAMW_TASKS.values())}


def check_data(names: Sequence[str]) -> None:
    """End the program, with what to install, if a task's data are not there."""
    if any(TASKS[name].data is fashion for name in names) and not FASHION.is_dir():
        print(f"{FASHION} is missing: apt-get install dataset-fashion-mnist", file=sys.stderr)
        raise SystemExit(2)
