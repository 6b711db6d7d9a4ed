"""The nets of the tests: those that attacks are measured on, narrow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_statistics(model: nn.Module, *shape: int) -> nn.Module:
    """Batch norms with statistics, scales and shifts of their own; in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, *shape))
    return model.eval()


class Block(nn.Module):
    """ResNet's, or where `first` PreActResNet's: norm and ReLU before each convolution."""

    def __init__(self, channels: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels if first else outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != outputs:
            layers: list[nn.Module] = [nn.Conv2d(channels, outputs, 1, stride, bias=False)]
            self.shortcut = nn.Sequential(*layers, *[nn.BatchNorm2d(outputs)] * (not first))

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            y = F.relu(self.norm1(x))
            shortcut = self.shortcut(y) if len(self.shortcut) else x
            return self.conv2(F.relu(self.norm2(self.conv1(y)))) + shortcut
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, width: int = 16, first: bool = False, depth: int = 2) -> None:
        super().__init__()
        self.first = first
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, channels = [], width
        for stage in range(4):
            for stride in (1 + (stage > 0), *[1] * (depth - 1)):
                blocks.append(Block(channels, width << stage, stride, first))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.BatchNorm2d(channels) if first else nn.Identity()
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.blocks(x if self.first else F.relu(self.norm(x)))
        x = F.relu(self.last(x)) if self.first else x
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def vgg16_bn(width: int = 8) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for step in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
        if not step:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, width * step, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width * step), nn.ReLU(inplace=True)]
        channels = width * step
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


class ViT(nn.Module):
    """With a convolutional stem where `stem`, else with patches of 4x4."""

    def __init__(self, width: int = 48, depth: int = 2, stem: bool = False) -> None:
        super().__init__()
        patches = nn.Conv2d(3, width, 4, 4)
        convs = [nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, width, 4, 4)]
        self.patches = nn.Sequential(*convs) if stem else patches
        self.place = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.fc(self.layers(tokens).mean(1))


class MnistNet(nn.Module):
    """LeNet's shape with 3x3 convolutions: one channel, whose memory format is ambiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).view(-1, 16 * 49))
