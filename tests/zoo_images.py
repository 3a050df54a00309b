"""The zoo's convolutional networks."""

from __future__ import annotations

import nets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_case import Case

IMAGE = torch.zeros(2, 3, 8, 8)


def conv_bn_act(inputs: int, outputs: int, kernel: int = 3, **more: int) -> nn.Sequential:
    """Return a convolution without bias that keeps the image's size, BatchNorm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **more)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(nn.Module):
    """Feature maps of `channels`, averaged over their positions, into three classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, 3)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))


class VGG(nn.Module):
    """Flattens 2 x 2 pixels into a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(12 * 2 * 2, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


class BottleneckBlock(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn_act(inputs, middle, 1)
        self.conv2 = conv_bn_act(middle, middle, 3, groups=groups)
        self.conv3 = nn.Sequential(nn.Conv2d(middle, outputs, 1), nn.BatchNorm2d(outputs))
        self.down = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.down(x))


class PreActivationBlock(nn.Module):
    """He et al. 2016 (identity mappings): the norm and the activation come first."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, middle, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(middle), nn.Conv2d(middle, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class Blocks(Classifier):
    """A stem, blocks in a row, and a classifier."""

    def __init__(self, stem: nn.Module, *blocks: nn.Module, channels: int) -> None:
        super().__init__(channels)
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.blocks(self.stem(x)))


def resnet_basic() -> nn.Module:
    return Blocks(conv_bn_act(3, 8), BasicBlock(8, 8), BasicBlock(8, 12, 2), channels=12)


def resnet_bottleneck() -> nn.Module:
    blocks = BottleneckBlock(8, 6, 16), BottleneckBlock(16, 6, 16)
    return Blocks(conv_bn_act(3, 8), *blocks, channels=16)


def resnext() -> nn.Module:
    blocks = BottleneckBlock(8, 12, 16, groups=4), BottleneckBlock(16, 12, 16, groups=4)
    return Blocks(conv_bn_act(3, 8), *blocks, channels=16)


def preactivation_resnet() -> nn.Module:
    blocks = PreActivationBlock(8, 12), PreActivationBlock(8, 10)
    last = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    return Blocks(nn.Conv2d(3, 8, 3, padding=1), *blocks, last, channels=8)


class Inception(Classifier):
    def __init__(self) -> None:
        super().__init__(8)
        self.stem = conv_bn_act(3, 6)
        self.one = conv_bn_act(6, 4, 1)
        self.three = nn.Sequential(conv_bn_act(6, 5, 1), conv_bn_act(5, 6, 3))
        self.five = nn.Sequential(conv_bn_act(6, 3, 1), conv_bn_act(3, 4, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn_act(6, 2, 1))
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [self.one(x), self.three(x), self.five(x), self.pooled(x)]
        return self.classify(F.relu(self.last(torch.cat(branches, dim=1))))


class GatedLinearUnits(Classifier):
    """Channels of one layer in two halves: one gates the other."""

    def __init__(self) -> None:
        super().__init__(6)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.first(x).chunk(2, dim=1)
        return self.classify(F.glu(self.second(value * torch.sigmoid(gate)), dim=1))


class CrossStagePartial(Classifier):
    """One half of the channels goes through a block, the other around it (CSPNet)."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem = conv_bn_act(3, 12)
        self.inner = nn.Sequential(conv_bn_act(6, 5, 1), conv_bn_act(5, 6, 3))
        self.last = conv_bn_act(12, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.stem(x).chunk(2, dim=1)
        return self.classify(self.last(torch.cat([around, through + self.inner(through)], dim=1)))


class SplitBySizes(Classifier):
    """Splits by numbers that it was built with, as YOLO's C2f and Res2Net do."""

    def __init__(self) -> None:
        super().__init__(9)
        self.sizes = [5, 7]
        self.stem = conv_bn_act(3, 12)
        self.left, self.right = nn.Conv2d(5, 6, 1), nn.Conv2d(7, 8, 3, padding=1)
        self.last = conv_bn_act(14, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.stem(x), self.sizes, dim=1)
        return self.classify(self.last(torch.cat([self.left(left), self.right(right)], dim=1)))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(inputs), nn.ReLU6(), conv_bn_act(inputs, outputs, 1)
    )


def mobilenet_v1() -> nn.Module:
    return Blocks(conv_bn_act(3, 8), separable(8, 12), separable(12, 10, 2), channels=10)


class InvertedResidual(nn.Module):
    """MobileNetV2's block; with `squeezed`, EfficientNet's."""

    def __init__(self, channels: int, hidden: int, squeezed: int = 0) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.reduce = nn.Conv2d(hidden, squeezed, 1) if squeezed else None
        self.excite = nn.Conv2d(squeezed, hidden, 1) if squeezed else None
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn1(self.expand(x)))
        y = F.silu(self.bn2(self.depthwise(y)))
        if self.reduce is not None and self.excite is not None:
            gate = self.excite(F.silu(self.reduce(F.adaptive_avg_pool2d(y, 1))))
            y = y * torch.sigmoid(gate)
        return x + self.bn3(self.project(y))


def mobilenet_v2() -> nn.Module:
    blocks = InvertedResidual(8, 16), InvertedResidual(8, 12)
    return Blocks(conv_bn_act(3, 8), *blocks, channels=8)


def efficientnet_block() -> nn.Module:
    return Blocks(conv_bn_act(3, 8), InvertedResidual(8, 16, squeezed=4), channels=8)


def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.BatchNorm2d(12),
        nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def two_groups() -> nn.Module:
    """Return AlexNet's kind: two halves that see each other in some layers only."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 10, 1), nn.ReLU(), nn.Conv2d(10, 2, 1),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn_act(3, 6), conv_bn_act(6, 8)
        self.bottom = conv_bn_act(8, 10)
        self.up2 = conv_bn_act(10 + 8, 8)
        self.transposed = nn.ConvTranspose2d(8, 7, 2, stride=2)
        self.up1 = conv_bn_act(7 + 6, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.bottom(F.max_pool2d(two, 2))
        y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        y = self.up2(torch.cat([y, two], dim=1))
        return self.head(self.up1(torch.cat([self.transposed(y), one], dim=1)))


class TemporalBlock(nn.Module):
    """A causal, dilated convolution over time with a residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.conv1 = nn.Conv1d(channels, 8, 3, dilation=dilation)
        self.conv2 = nn.Conv1d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(F.pad(x, (self.padding, 0)))))


class Temporal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 6, 1)
        self.blocks = nn.Sequential(TemporalBlock(6, 1), TemporalBlock(6, 2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x))[:, :, -1])


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


def prelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU(), nn.Conv2d(6, 2, 1)
    )


def between(*layers: nn.Module) -> nn.Module:
    """Put `layers` of 8 channels between convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *layers, nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """Depthwise, then LayerNorm and Linear layers on channels-last features, scaled, added."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand, self.project = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    blocks = ConvNeXtBlock(8, 16), ConvNeXtBlock(8, 12)
    return Blocks(nn.Conv2d(3, 8, 2, stride=2), *blocks, channels=8)


class MixerBlock(nn.Module):
    """Mixes over tokens, transposed, then over channels."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.token1, self.token2 = nn.Linear(tokens, 10), nn.Linear(10, tokens)
        self.channel1, self.channel2 = nn.Linear(channels, 14), nn.Linear(14, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x).transpose(1, 2)
        x = x + self.token2(F.gelu(self.token1(y))).transpose(1, 2)
        return x + self.channel2(F.gelu(self.channel1(self.norm2(x))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(4, 8), MixerBlock(4, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(x).mean(1))


class PermutedFlatten(nn.Module):
    """Flattens channels-last, as torchcrepe does: a channel is read at strided places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(3 * 6 * 3, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn(F.relu(self.conv(x))), 2)
        x = x.permute(0, 2, 1, 3).reshape(x.shape[0], -1)
        return self.head(torch.relu(self.hidden(x)))


class ShuffleBlock(nn.Module):
    """ShuffleNetV2's unit: split, convolve one half, concatenate, shuffle the halves' channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.conv2 = conv_bn_act(half, half, 1), conv_bn_act(half, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.conv2(self.depthwise(self.conv1(right)))], dim=1)
        samples, channels, height, width = x.shape
        x = x.view(samples, 2, channels // 2, height, width)
        return x.transpose(1, 2).reshape(samples, channels, height, width)


def shufflenet() -> nn.Module:
    last = conv_bn_act(8, 10, 1)
    return Blocks(conv_bn_act(3, 8), ShuffleBlock(8), ShuffleBlock(8), last, channels=10)


class SamePaddingConv(nn.Conv2d):
    """A convolution that pads by a layer of its own, as EfficientNet-Lite's does."""

    def __init__(self, inputs: int, outputs: int, kernel: int, **more: int) -> None:
        super().__init__(inputs, outputs, kernel, **more)
        self.pad = nn.ZeroPad2d((0, kernel - 1, 0, kernel - 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, groups=self.groups)


def conv_with_children() -> nn.Module:
    return nn.Sequential(
        SamePaddingConv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), SamePaddingConv(8, 8, 3, groups=8),
        nn.ReLU(), SamePaddingConv(8, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 2, 1),
    )  # fmt: skip


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 20, 3, padding=1)
        self.head = nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_shuffle(torch.relu(self.second(torch.relu(self.first(x)))), 2))


IMAGES = (
    Case(name="conv_bn", factory=nets.conv_bn, example=IMAGE, expected={"0": 8, "3": 12}),
    Case(
        name="vgg", factory=VGG, example=IMAGE,
        expected={"features.0": 8, "features.2": 8, "features.5": 12, "classifier.0": 16},
    ),
    Case(
        name="resnet_basic", factory=resnet_basic, example=IMAGE,
        expected={"stem.0": 8, "blocks.0.conv1": 8, "blocks.0.conv2": 8, "blocks.1.conv1": 12,
                  "blocks.1.conv2": 12, "blocks.1.down.0": 12},
    ),
    Case(
        name="resnet_bottleneck", factory=resnet_bottleneck, example=IMAGE,
        expected={"stem.0": 8, "blocks.0.conv1.0": 6, "blocks.0.conv2.0": 6, "blocks.0.down": 16,
                  "blocks.1.conv1.0": 6, "blocks.1.conv2.0": 6, "blocks.1.conv3.0": 16},
    ),
    Case(
        name="preactivation_resnet", factory=preactivation_resnet, example=IMAGE,
        expected={"stem": 8, "blocks.0.conv1": 12, "blocks.1.conv1": 10, "blocks.1.conv2": 8},
    ),
    Case(
        name="densenet", factory=nets.Dense, example=IMAGE,
        expected={"stem": 6, "convs.0": 4, "convs.1": 4},
    ),
    Case(
        name="inception", factory=Inception, example=IMAGE,
        expected={"stem.0": 6, "one.0": 4, "three.0.0": 5, "three.1.0": 6, "five.0.0": 3,
                  "five.1.0": 4, "pooled.1.0": 2, "last": 8},
    ),
    Case(
        name="gated_linear_units", factory=GatedLinearUnits, example=IMAGE,
        expected={"first": 8, "second": 6},
    ),
    Case(
        name="cross_stage_partial", factory=CrossStagePartial, example=IMAGE,
        expected={"stem.0": None, "inner.0.0": 5, "last.0": 10},
    ),
    Case(
        name="split_by_sizes", factory=SplitBySizes, example=IMAGE,
        expected={"left": 6, "right": 8, "last.0": 9},
    ),
    Case(
        name="mobilenet_v1", factory=mobilenet_v1, example=IMAGE,
        expected={"stem.0": 8, "blocks.0.0": 8, "blocks.0.3.0": 12, "blocks.1.3.0": 10},
    ),
    Case(
        name="mobilenet_v2", factory=mobilenet_v2, example=IMAGE,
        expected={"stem.0": 8, "blocks.0.expand": 16, "blocks.0.depthwise": 16,
                  "blocks.1.expand": 12, "blocks.1.project": 8},
    ),
    Case(
        name="depthwise_multiplier", factory=depthwise_multiplier, example=torch.zeros(2, 3, 6, 6),
        expected={"0": 6, "2": 6, "5": 8},
    ),
    Case(
        name="resnext", factory=resnext, example=IMAGE,
        expected={"stem.0": 8, "blocks.0.conv1.0": None, "blocks.0.conv2.0": None,
                  "blocks.0.down": 16, "blocks.1.conv1.0": None, "blocks.1.conv2.0": None},
    ),
    Case(
        name="two_groups", factory=two_groups, example=IMAGE,
        expected={"0": None, "2": None, "4": None, "7": 10},
    ),
    Case(
        name="squeeze_excite", factory=nets.SqueezeExcite, example=IMAGE,
        expected={"conv": 12, "squeeze": 4, "excite": 12},
    ),
    Case(
        name="efficientnet_block", factory=efficientnet_block, example=IMAGE,
        expected={"stem.0": 8, "blocks.0.expand": 16, "blocks.0.reduce": 4, "blocks.0.excite": 16,
                  "blocks.0.project": 8},
    ),
    Case(
        name="transposed_autoencoder", factory=nets.autoencoder, example=torch.zeros(2, 1, 8, 8),
        expected={"0": 8, "2": 4, "4": 10},
    ),
    Case(
        name="unet", factory=UNet, example=IMAGE,
        expected={"down1.0": 6, "down2.0": 8, "bottom.0": 10, "up2.0": 8, "transposed": 7,
                  "up1.0": 6},
    ),
    Case(
        name="conv1d", factory=nets.conv1d, example=torch.zeros(2, 2, 16),
        expected={"0": 8, "4": 6},
    ),
    Case(
        name="temporal", factory=Temporal, example=torch.zeros(2, 2, 12),
        expected={"stem": 6, "blocks.0.conv1": 8, "blocks.1.conv1": 8, "blocks.1.conv2": 6},
    ),
    Case(
        name="conv3d", factory=conv3d, example=torch.zeros(2, 1, 4, 4, 4),
        expected={"0": 6, "4": 8},
    ),
    Case(name="prelu", factory=prelu, example=IMAGE, expected={"0": 8, "1": 8, "2": 6}),
    Case(
        name="group_norm", factory=lambda: between(nn.GroupNorm(4, 8)), example=IMAGE,
        expected={"0": None, "1": None, "3": 6},
    ),
    Case(
        name="group_norm_over_all", factory=lambda: between(nn.GroupNorm(1, 8)), example=IMAGE,
        expected={"0": 8, "1": 8, "3": 6},
    ),
    Case(
        name="group_norm_by_channel", factory=lambda: between(nn.GroupNorm(8, 8)), example=IMAGE,
        expected={"0": 8, "1": 8, "3": 6},
    ),
    Case(
        name="instance_norm", factory=lambda: between(nn.InstanceNorm2d(8)), example=IMAGE,
        expected={"0": 8, "3": 6},
    ),
    Case(
        name="instance_norm_affine",
        factory=lambda: between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        example=IMAGE, expected={"0": 8, "1": 8, "3": 6},
    ),
    Case(
        name="convnext", factory=convnext, example=IMAGE,
        expected={"stem": 8, "blocks.0.depthwise": 8, "blocks.0.scale": 8, "blocks.0.expand": 16,
                  "blocks.1.expand": 12, "blocks.1.project": 8},
    ),
    Case(
        name="mixer", factory=Mixer, example=IMAGE,
        expected={"stem": 8, "blocks.0.token1": 10, "blocks.0.channel1": 14, "blocks.1.token1": 10,
                  "blocks.1.channel1": 14, "blocks.1.channel2": 8},
    ),
    Case(
        name="permuted_flatten", factory=PermutedFlatten, example=IMAGE,
        expected={"conv": 6, "hidden": 10},
    ),
    Case(
        name="shufflenet", factory=shufflenet, example=IMAGE,
        expected={"stem.0": None, "blocks.0.conv1.0": 4, "blocks.1.conv1.0": 4,
                  "blocks.1.depthwise": 4, "blocks.2.0": 10},
    ),
    Case(
        name="conv_with_children", factory=conv_with_children, example=IMAGE,
        expected={"0": 8, "3": 8, "5": 6},
    ),
    Case(
        name="pixel_shuffle", factory=SuperResolution, example=IMAGE,
        expected={"first": 8, "second": 5},
    ),
)  # fmt: skip
