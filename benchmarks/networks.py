"""Networks for the measurements, with random weights: nothing is downloaded."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """He et al. 2016, fig. 5: two 3x3 convolutions, or a 1x1-3x3-1x1 bottleneck."""

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int, deep: bool) -> None:
        super().__init__()
        layers = (
            [
                conv_bn(inputs, inner, 1),
                nn.ReLU(),
                conv_bn(inner, inner, 3, stride=stride),
                nn.ReLU(),
                conv_bn(inner, outputs, 1),
            ]
            if deep
            else [
                conv_bn(inputs, inner, 3, stride=stride),
                nn.ReLU(),
                conv_bn(inner, outputs, 3),
            ]
        )
        self.body = nn.Sequential(*layers)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(blocks: tuple[int, ...], *, deep: bool, classes: int) -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate(blocks):
        inner = 64 * 2**stage
        outputs = inner * (4 if deep else 1)
        for number in range(count):
            stride = 2 if stage and number == 0 else 1
            layers.append(Residual(inputs, inner, outputs, stride=stride, deep=deep))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *head)


def resnet18() -> nn.Module:
    """11.2 million parameters with 100 classes."""
    return resnet((2, 2, 2, 2), deep=False, classes=100)


def resnet50() -> nn.Module:
    """25.6 million parameters with 1,000 classes, 161 tensors."""
    return resnet((3, 4, 6, 3), deep=True, classes=1000)


class InvertedResidual(nn.Module):
    """Sandler et al. 2018, fig. 3: 1x1 expansion, 3x3 depthwise, linear 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = [] if expansion == 1 else [conv_bn(inputs, inner, 1), nn.ReLU6()]
        layers += [
            conv_bn(inner, inner, 3, stride=stride, groups=inner),
            nn.ReLU6(),
            conv_bn(inner, outputs, 1),
        ]
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


MOBILENET_V2 = (
    # expansion, channels, blocks, stride: Sandler et al. 2018, table 2
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2() -> nn.Module:
    """2.4 million parameters with 100 classes."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, stride=2), nn.ReLU6()]
    inputs = 32
    for expansion, outputs, blocks, stride in MOBILENET_V2:
        for number in range(blocks):
            layers.append(
                InvertedResidual(
                    inputs, outputs, stride=stride if number == 0 else 1, expansion=expansion
                )
            )
            inputs = outputs
    head = [conv_bn(inputs, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(1280, 100))


def mlp() -> nn.Module:
    """2.4 million parameters."""
    widths = (512, 1024, 1024, 768, 100)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
