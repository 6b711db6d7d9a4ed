"""The nets that attacks are measured on, at their papers' sizes, for 32x32 images or MNIST's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import architectures


class Block(nn.Module):
    """1512.03385's, with a projection where the shape changes."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if channels != outputs:
            projection = nn.Conv2d(channels, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """1603.05027's: norm and activation, there a ReLU, before each convolution."""

    def __init__(self, channels: int, outputs: int, stride: int, silu: bool = False) -> None:
        super().__init__()
        self.activate = functional.silu if silu else functional.relu
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels != outputs:
            self.shortcut = nn.Conv2d(channels, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activate(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        total: Tensor = self.conv2(self.activate(self.norm2(self.conv1(y)))) + kept
        return total


def _blocks(
    kind: Callable[[int, int, int], nn.Module], channels: int, widths: tuple[int, ...], depth: int
) -> list[nn.Module]:
    blocks = []
    for k, outputs in enumerate(widths):
        for i in range(depth):
            blocks.append(kind(channels, outputs, 2 if k and not i else 1))
            channels = outputs
    return blocks


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def resnet18(depth: int = 2) -> nn.Module:
    """Widths 64 to 512, `depth` blocks each, and a stem of 3x3 without pooling."""
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *_blocks(Block, 64, (64, 128, 256, 512), depth), *_head(512))


def preactresnet18() -> nn.Module:
    """ResNet-18 of pre-activation blocks."""
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    blocks = _blocks(PreActBlock, 64, (64, 128, 256, 512), 2)
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(512), nn.ReLU(), *_head(512))


def preactresnet18_silu() -> nn.Module:
    """The same with SiLU, as the most robust nets on CIFAR-10 have it (Gowal et al. 2010.03593)."""
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    blocks = _blocks(partial(PreActBlock, silu=True), 64, (64, 128, 256, 512), 2)
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(512), nn.SiLU(), *_head(512))


def wideresnet28_10() -> nn.Module:
    """1605.07146's, without dropout."""
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    blocks = _blocks(PreActBlock, 16, (160, 320, 640), 4)
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(640), nn.ReLU(), *_head(640))


def vgg16_bn() -> nn.Module:
    """1409.1556's configuration D with batch norm, and one linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            conv = nn.Conv2d(channels, outputs, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_head(512))


def lenet() -> nn.Module:
    """Two 5x5 convolutions with pooling, for MNIST."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


class ViT(nn.Module):
    """2010.11929's, small: width 192, 6 layers, 3 heads, patches of 4x4, for 32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 64, 192) * 0.02)
        layer = nn.TransformerEncoderLayer(
            192, 3, 768, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.layers(tokens).mean(1))
        return logits


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "preactresnet18": preactresnet18,
    "preactresnet18_silu": preactresnet18_silu,
    "wideresnet28_10": wideresnet28_10,
    "vgg16_bn": vgg16_bn,
    "lenet": lenet,
    "vit": ViT,
    "densenet": architectures.densenet,
    "mobilenet": architectures.mobilenet,
    "convnext": architectures.ConvNeXt,
    "unruly": architectures.Unruly,
    "linear": architectures.linear,
    "mlp": architectures.mlp,
    "tiny_cnn": architectures.tiny_cnn,
}


def image_shape(name: str) -> tuple[int, int, int]:
    """Of the images that a net of NETS takes."""
    return (1, 28, 28) if name == "lenet" else (3, 32, 32)
