"""More nets: the architectures that people attack, and what single layers can ask of a compiler."""

from __future__ import annotations

import nets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class WideResNet(nn.Module):
    """1605.07146's WRN-(6 depth + 4)-widen."""

    def __init__(self, depth: int, widen: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks, channels = [], 16
        for stage in range(3):
            for i in range(depth):
                outputs = 16 * widen << stage
                blocks.append(nets.Block(channels, outputs, 1 + (stage > 0 and i == 0), True))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def lenet() -> nn.Module:
    """Madry et al.'s MNIST net, 1706.06083: convolutions of 5x5."""
    first = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))


class Head(nn.Module):
    """A trunk of (N, 3, H, W) to (N, channels, H, W), and `layer` between it and the logits."""

    def __init__(self, *layers: nn.Module, outputs: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(outputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(torch.tanh(self.first(x))).square().mean((2, 3)))


class Tied(nn.Module):
    """One convolution used twice, another that shares its weight, and one read by two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.same = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.same.weight = self.again.weight
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.again(F.relu(self.again(x))))
        x = self.same(x)
        x = self.norm(x) + F.silu(x)  # both read the convolution
        return self.fc(F.relu(self.same(x) + x).mean((2, 3)))


class Parts(nn.Module):
    """Gives a dict with a tuple, an image among them, and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> dict[str, object]:
        features = F.relu(self.conv1(x))
        deep = F.relu(self.conv2(features))
        return {"logits": self.fc(deep.mean((2, 3))), "images": (features, deep), "name": "parts"}


def _conv(size: int = 3, **options: object) -> nn.Module:
    return nn.Conv2d(16, 16, size, **options)  # type: ignore[arg-type]


LAYERS = {
    "dilation": lambda: Head(_conv(padding=2, dilation=2), nn.ReLU(), _conv()),
    "groups": lambda: Head(_conv(padding=1, groups=4), nn.ReLU(), _conv(padding=1)),
    "asymmetric": lambda: Head(_conv(padding=(0, 2)), nn.ReLU(), _conv((3, 1), padding=(1, 0))),
    "same": lambda: Head(_conv(padding="same"), nn.ReLU(), _conv(5, padding="same")),
    "circular": lambda: Head(_conv(padding=1, padding_mode="circular"), nn.ReLU(), _conv()),
    "reflect": lambda: Head(_conv(padding=2, padding_mode="reflect"), nn.SELU(), _conv()),
    "transposed": lambda: Head(nn.ConvTranspose2d(16, 16, 3, 2, 1), nn.ReLU(), _conv()),
    "upsampled": lambda: Head(
        nn.Upsample(scale_factor=2, mode="bilinear"), _conv(), nn.ReLU(inplace=True), _conv()
    ),
    "activations": lambda: Head(
        _conv(),
        nn.ReLU6(),
        _conv(),
        nn.LeakyReLU(0.1, inplace=True),
        _conv(),
        nn.SiLU(True),
        _conv(),
        nn.Hardswish(),
        _conv(padding=1),
        nn.PReLU(),
        _conv(padding=1),
        nn.ELU(),
    ),
    "pools": lambda: Head(
        _conv(padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        _conv(padding=1),
        nn.AvgPool2d(2, 1),
        _conv(padding=1),
        nn.LPPool2d(2, 2),
    ),
    "weight_norm": lambda: Head(parametrizations.weight_norm(_conv()), nn.ReLU(), _conv()),
    "spectral_norm": lambda: Head(parametrizations.spectral_norm(_conv()), nn.ReLU(), _conv()),
    "norms": lambda: Head(
        _conv(),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        _conv(),
        nn.InstanceNorm2d(16, affine=True),
        nn.ReLU(),
        _conv(padding=1),
        nn.BatchNorm2d(16, affine=False),
        nn.Tanh(),
    ),
    "shuffled": lambda: Head(_conv(), nn.PixelShuffle(2), nn.Conv2d(4, 16, 3), nn.ReLU(), _conv()),
}
