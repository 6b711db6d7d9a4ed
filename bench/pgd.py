"""Whole attacks: PGD, linf, on ResNet-18 (CIFAR's stem), compiled and not, and torchattacks'.

The net is trained for a few steps on scikit-learn's digits as 3x32x32 images. Every case starts at
x, with equal radius, step size and steps; behind each stands the robust accuracy of its x_adv, from
the eager model (fa.verify, with 1e-5 of room for the others' roundings).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import gate, machine
from bench.store import Row, rows
from bench.timing import Case, interleave
from fastadv.cli import digits

YARDSTICK = "none"
BALL, STEP_SIZE = fa.Linf(8 / 255), 2 / 255


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pgd`."""
    parser.add_argument("--model", choices=["resnet18"], default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--train-steps", type=int, default=30, help="of the net, batch 32")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: torchattacks and fastadv, each on the plain and on the compiled model."""
    model, x, y = _trained(args.train_steps, args.batch)
    fast = fa.compile(model)
    _check_gradient(model, fast, x, y)
    attack = fa.pgd(BALL, STEP_SIZE, args.steps, start="zero")
    attacks: dict[str, Callable[[], Tensor]] = {
        "fastadv": lambda: attack(fast, x, y),
        "fastadv, plain model": lambda: attack(model, x, y),
        "torchattacks": _torchattacks(model, x, y, args.steps),
        "torchattacks, compiled model": _torchattacks(fast, x, y, args.steps),
    }
    accuracy = {name: _robust_accuracy(name, model, x, y, craft) for name, craft in attacks.items()}
    if max(accuracy.values()) - min(accuracy.values()) > 2 / len(x) + 1e-9:
        raise gate.GateError(f"robust accuracies differ by more than two samples: {accuracy}")
    cases: dict[str, Case] = dict(attacks)
    times = interleave(cases, args.seconds, least_rounds=3)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed: dict[str, str | int] = {
        "benchmark": "pgd", "shape": "x".join(map(str, x.shape)), "dtype": "float32",
        "norm": f"linf, {args.model}, {args.steps} steps", "threads": args.threads,
        "working_set": machine.fits(size),
    }  # fmt: skip
    table = rows(times, {}, YARDSTICK, fixed)
    return [[dataclasses.replace(r, case=f"{r.case}: {accuracy[r.case]:.1%}") for r in table]]


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Callable[[], Tensor]:
    library: Any = importlib.import_module("torchattacks")
    options = {"eps": BALL.radius, "alpha": STEP_SIZE, "steps": steps, "random_start": False}
    attack = library.PGD(model, **options)
    return lambda: attack(x, y)


def _robust_accuracy(
    name: str, model: nn.Module, x: Tensor, y: Tensor, craft: Callable[[], Tensor]
) -> float:
    verdict = fa.verify(model, x, craft(), y, BALL, tolerance=1e-5)
    gate.inside(name, verdict.distance, BALL.radius * (1 + 1e-5))
    return verdict.robust_accuracy


def _check_gradient(model: nn.Module, fast: nn.Module, x: Tensor, y: Tensor) -> None:
    """The compiled model's gradient against float64's: the median over the samples."""
    found = _gradient(fast, x, y).double().flatten(1)
    exact = _gradient(copy.deepcopy(model).double(), x.double(), y).flatten(1)
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    gate.close("a gradient", error.median(), torch.zeros(()), 1e-5)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss = functional.cross_entropy(model(leaf), y, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


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


def resnet18() -> nn.Module:
    """Widths 64 to 512, and a stem of 3x3 without pooling."""
    stem: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)]
    blocks: list[nn.Module] = []
    channels = 64
    for outputs in (64, 128, 256, 512):
        blocks += [Block(channels, outputs, 1 + (outputs > 64)), Block(outputs, outputs, 1)]
        channels = outputs
    return nn.Sequential(
        *stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)
    )


def _trained(steps: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The net in eval mode, and test images with their labels."""
    torch.manual_seed(0)
    data, model = digits.load(), resnet18()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        index = torch.randint(len(data.x), (32,))
        loss = functional.cross_entropy(model(_images(data.x[index])), data.y[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    index = torch.arange(batch) % len(data.x_test)
    return model.eval(), _images(data.x_test[index]), data.y_test[index]


def _images(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) to (N, 3, 32, 32)."""
    grown = functional.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    return grown.expand(-1, 3, -1, -1).contiguous()
