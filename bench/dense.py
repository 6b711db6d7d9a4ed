"""Whole attacks on a dense net: PGD, linf, on 784-512-512-10 with ReLU, fastadv's and the peers'.

The net is trained for a few epochs on scikit-learn's digits as 28x28 images. Every case starts at
x, with equal radius, step size and steps. Before any figure each crafts for 512 test images, in
batches as they are measured, and the robust accuracy there, from the eager model (fa.verify, with
1e-5 of room for the others' roundings), must be plain torch's within half a point.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import attacks, gate, machine
from bench.attacks import Craft
from bench.store import Row, rows
from bench.timing import interleave
from fastadv.cli import digits

YARDSTICK = "none"
BALL, STEPS_TO_THE_EDGE = fa.Linf(0.06), 10
SIZES = (784, 512, 512, 10)
GATED = 512


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dense`."""
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--train-epochs", type=int, default=10)


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: both precisions, the step by step loop, and the libraries that are here."""
    model, x, y = _trained(args.train_epochs)
    cases = _cases(model, args.steps)
    accuracy = {
        name: attacks.robust_accuracy(name, model, x, y, args.batch, BALL, craft)
        for name, craft in cases.items()
    }
    expected = accuracy["fastadv, plain model"]
    if max(abs(found - expected) for found in attacks.of_last_iterates(accuracy)) > 0.005 + 1e-9:
        raise gate.GateError(f"robust accuracies differ by more than half a point: {accuracy}")
    index = torch.arange(args.batch) % len(x)
    batch = x[index], y[index]
    times = interleave(
        {name: partial(craft, *batch) for name, craft in cases.items()},
        args.seconds,
        least_rounds=5,
    )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed: dict[str, str | int] = {
        "benchmark": "dense", "shape": f"{args.batch}x{SIZES[0]}", "dtype": "float32",
        "norm": f"linf, {'-'.join(map(str, SIZES))}, {args.steps} steps", "threads": args.threads,
        "working_set": machine.fits(2 * weights),
    }  # fmt: skip
    table = rows(times, {}, YARDSTICK, fixed)
    _say_speed(times["fastadv"].quantile(50), args.batch, args.steps)
    return [[dataclasses.replace(r, case=f"{r.case}: {accuracy[r.case]:.1%}") for r in table]]


def _cases(model: nn.Module, steps: int) -> dict[str, Craft]:
    size = BALL.radius / STEPS_TO_THE_EDGE
    attack = fa.pgd(BALL, size, steps, start="zero")
    fast, narrow = fa.compile(model), fa.compile(model, precision="bfloat16")
    cases: dict[str, Craft] = {
        "fastadv": lambda x, y: attack(fast, x, y),
        "fastadv, bfloat16": lambda x, y: attack(narrow, x, y),
        "fastadv, plain model": lambda x, y: attack(model, x, y),
    }
    cases |= attacks.peers(model, BALL, size, steps)
    if "torchattacks" in cases:
        for name, compiled in (("compiled", fast), ("bfloat16", narrow)):
            peers = attacks.peers(compiled, BALL, size, steps)
            cases[f"torchattacks, {name}"] = peers["torchattacks"]
    return cases


def _say_speed(seconds: float, batch: int, steps: int) -> None:
    weights = sum(a * b for a, b in pairwise(SIZES))
    print(f"fastadv: {4e-9 * weights * batch * steps / seconds:.0f} GFLOP/s")


def _trained(epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The net in eval mode, and test images with their labels, some of them twice."""
    torch.manual_seed(0)
    data = digits.load()
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in data.batches():
            optimizer.zero_grad()
            functional.cross_entropy(model(_images(x)), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    index = torch.arange(GATED) % len(data.x_test)
    return model.eval(), _images(data.x_test[index]), data.y_test[index]


def _images(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) to (N, 784)."""
    return functional.interpolate(x, size=(28, 28), mode="bilinear").flatten(1)
