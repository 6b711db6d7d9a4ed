"""Whole attacks: PGD, linf, on a net, compiled and not, and the peers' on the plain one.

The net is trained for a few steps on scikit-learn's digits as 3x32x32 images (lenet: 1x28x28).
Every case starts at x, with equal radius, step size and steps; behind each stands the robust
accuracy of its x_adv, from the eager model (fa.verify, with 1e-5 of room for others' roundings).
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import attacks, flips, gate, machine
from bench.attacks import Craft
from bench.nets import NETS
from bench.store import Row, rows
from bench.timing import interleave
from fastadv.cli import digits

YARDSTICK = "none"
BALL, STEP_SIZE = fa.Linf(8 / 255), 2 / 255


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pgd`."""
    parser.add_argument("--model", choices=NETS, default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--train-steps", type=int, default=30, help="of the net, batch 32")
    parser.add_argument("--few", action="store_true", help="of the peers torchattacks alone")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: fastadv in both precisions and on the plain model, and the peers."""
    model, x, y = trained(args.model, args.train_steps, args.batch)
    crafts = _crafts(model, x, y, args)
    accuracy = {
        name: attacks.robust_accuracy(name, model, x, y, len(x), BALL, craft)
        for name, craft in crafts.items()
    }
    compared = attacks.of_last_iterates(accuracy)
    if max(compared) - min(compared) > 2 / len(x) + 1e-9:
        raise gate.GateError(f"robust accuracies differ by more than two samples: {accuracy}")
    cases = {name: partial(craft, x, y) for name, craft in crafts.items()}
    times = interleave(cases, args.seconds, least_rounds=3, warm_up=1)  # the gate made them once
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed: dict[str, str | int] = {
        "benchmark": "pgd", "shape": "x".join(map(str, x.shape)), "dtype": "float32",
        "norm": f"linf, {args.model}, {args.steps} steps", "threads": args.threads,
        "working_set": machine.fits(size),
    }  # fmt: skip
    table = rows(times, {}, YARDSTICK, fixed)
    return [[dataclasses.replace(r, case=f"{r.case}: {accuracy[r.case]:.1%}") for r in table]]


def _crafts(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Craft]:
    fast = fa.compile(model)
    check_gradient(model, fast, x, y)
    attack = fa.pgd(BALL, STEP_SIZE, args.steps, start="zero")
    crafts: dict[str, Craft] = {
        "fastadv": lambda x, y: attack(fast, x, y),
        "fastadv, plain model": lambda x, y: attack(model, x, y),
    }
    if fa.backend().is_native and not fast.report().bypassed:
        narrow = fa.compile(model, precision="bfloat16")
        crafts["fastadv, bfloat16"] = lambda x, y: attack(narrow, x, y)
    settings = (BALL, STEP_SIZE, args.steps)
    peers = attacks.peers(model, *settings)
    crafts |= {k: v for k, v in peers.items() if k == "torchattacks" or not args.few}
    if "torchattacks" in peers:
        crafts["torchattacks, compiled model"] = attacks.peers(fast, *settings)["torchattacks"]
    return crafts


def check_gradient(model: nn.Module, fast: nn.Module, x: Tensor, y: Tensor) -> None:
    """The compiled model's gradient against float64's: the median over the samples."""
    gate.close("a gradient", flips.errors(model, fast, x, y).median(), torch.zeros(()), 1e-5)


def trained(name: str, steps: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The net in eval mode, and test images with their labels."""
    torch.manual_seed(0)
    data, model = digits.load(), NETS[name]()
    images = partial(_images, mnist=name == "lenet")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        index = torch.randint(len(data.x), (32,))
        loss = functional.cross_entropy(model(images(data.x[index])), data.y[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    index = torch.arange(batch) % len(data.x_test)
    return model.eval(), images(data.x_test[index]), data.y_test[index]


def _images(x: Tensor, mnist: bool) -> Tensor:
    """(N, 1, 8, 8) to (N, 3, 32, 32), or (N, 1, 28, 28)."""
    size = (28, 28) if mnist else (32, 32)
    grown = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return grown if mnist else grown.expand(-1, 3, -1, -1).contiguous()
