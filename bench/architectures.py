"""More nets: other kinds of layers than bench/nets.py's, narrow, and nets too small to compile.

The engine's tests run on these too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


def densenet(growth: int = 12, depth: int = 6) -> nn.Module:
    """1608.06993's DenseNet-BC of 6 depth + 4 layers, in three blocks."""
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if block < 2:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def _conv_norm(i: int, o: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(o)]


class Inverted(nn.Module):
    """1801.04381's block: 1x1, depthwise 3x3, 1x1, without a ReLU at its end."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.layers = nn.Sequential(
            *_conv_norm(channels, wide, 1), nn.ReLU6(inplace=True),
            *_conv_norm(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True),
            *_conv_norm(wide, outputs, 1),
        )  # fmt: skip
        self.skips = stride == 1 and channels == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.skips else y


def mobilenet(width: int = 16) -> nn.Module:
    """Four such blocks, in the style of MobileNetV2."""
    blocks = [Inverted(width, width, 1), Inverted(width, 2 * width, 2)]
    blocks += [Inverted(2 * width, 2 * width, 1), Inverted(2 * width, 4 * width, 2)]
    stem = [*_conv_norm(3, width, 3), nn.ReLU6()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class ConvNeXt(nn.Module):
    """2201.03545: a stem, and blocks of a depthwise 7x7, LayerNorm and two linears."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, width, 2, 2))
        self.mixers = nn.ModuleList(
            [nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(depth)]
        )
        self.mlps = nn.ModuleList([
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(),
                          nn.Linear(4 * width, width)) for _ in range(depth)
        ])  # fmt: skip
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for mixer, mlp in zip(self.mixers, self.mlps, strict=True):
            x = x + (self.scale * mlp(mixer(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Square(torch.autograd.Function):
    """An op that no compiler has heard of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = 2 * x * grad
        return found


class Unruly(nn.Module):
    """Branches on its data, an op of its own, dilation, groups, and convolutions in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=2)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=0)
        self.up = nn.ConvTranspose2d(16, 8, 3, stride=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.conv1(x))
        logits: Tensor
        if float(y.detach().sum()) > 1e9:
            logits = self.fc(y.mean((2, 3))[:, :8])
            return logits
        y = Square.apply(torch.tanh(self.conv2(y)))  # type: ignore[no-untyped-call]
        for _ in range(2):
            y = functional.relu(self.conv3(y))
        logits = self.fc(functional.silu(self.up(y)).mean((2, 3)))
        return logits


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


def mlp() -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))


def tiny_cnn(channels: int = 4) -> nn.Module:
    """Two convolutions of 4 channels."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
    )  # fmt: skip
