"""bfloat16 against float32: the robust accuracy that PGD finds with products of either.

Linf, PGD-20 from one random start, the same for both, on a small net of 3x3 convolutions that was
trained naturally (radius .1) and adversarially (PGD-7, radius .2), on MNIST given as --data
mnist.npz, or else on scikit-learn's digits. Each example is judged by the model itself in float32
(fa.verify). Red where the two differ by more than half a point, or no product is bfloat16's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import images
from bench.images import Images
from bench.store import Measured

YARDSTICK = "none"
RADII = {"natural": 0.1, "adversarial": 0.2}
APART = 0.005
_BATCH = 250


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `precision`."""
    parser.add_argument("--data", type=Path, help="mnist.npz (default: scikit-learn's digits)")
    parser.add_argument("--images", type=int, default=2000, help="of the test set, at most")
    parser.add_argument("--train-steps", type=int, default=400, help="of each net, batch 128")


@dataclass(frozen=True)
class Row(Measured):
    """case: the precision. narrow: layers, forward or gradient, whose products are bfloat16's."""

    clean: float
    robust: float
    narrow: int


def run(args: argparse.Namespace) -> Iterator[list[Row]]:
    """A table a net."""
    data = images.load(args.data)
    x, y = data.some(min(args.images, len(data.x_test)))
    for training, radius in RADII.items():
        model = _trained(data, args.train_steps, radius if training == "adversarial" else 0.0)
        attack = fa.pgd(fa.Linf(radius), radius / 8, 20)
        about = f"{data.name}, {training}, radius {radius}"
        with torch.no_grad():
            clean = float((model(x).argmax(1) == y).double().mean())
        yield [
            Row("precision", "x".join(map(str, x.shape)), precision, about, args.threads,
                precision, clean, *_robust(attack, model, precision, x, y))
            for precision in ("float32", "bfloat16")
        ]  # fmt: skip


def _robust(
    attack: fa.Attack, model: nn.Module, precision: str, x: Tensor, y: Tensor
) -> tuple[float, int]:
    fast = fa.compile(model, precision=precision)
    x_adv = torch.cat([
        attack(fast, x[k : k + _BATCH], y[k : k + _BATCH], offset=k, generator=_seeded())
        for k in range(0, len(x), _BATCH)
    ])  # fmt: skip
    rows = {row for graph in fast.report().graphs.values() for row in graph}
    narrow = sum("bfloat16" in row.served_by for row in rows)
    return fa.verify(model, x, x_adv, y, attack.ball).robust_accuracy, narrow


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _trained(data: Images, steps: int, radius: float) -> nn.Module:
    """In eval mode; `radius` grows over the first third of the steps, from 0 on."""
    torch.manual_seed(0)
    side = data.x.shape[-1] // 4
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * side**2, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for k in range(steps):
        index = torch.randint(len(data.x), (128,))
        x, y = data.x[index], data.y[index]
        if radius:
            r = radius * min(1.0, 3 * (k + 1) / steps)
            loss = fa.training.Madry(fa.pgd(fa.Linf(r), r / 4, 7))(model, x, y)
        else:
            loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def red(tables: list[list[Row]]) -> list[str]:
    """Where bfloat16 finds another robust accuracy."""
    return [
        f"{single.norm}: {half.robust:.2%} robust in bfloat16, {single.robust:.2%} in float32; "
        f"{half.narrow} layers of products in bfloat16"
        for single, half in tables
        if not (half.narrow and abs(single.robust - half.robust) <= APART + 1e-9)
    ]
