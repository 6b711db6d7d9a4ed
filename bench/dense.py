"""Whole attacks on a dense net: PGD, linf, on 784-512-512-10 with ReLU, fastadv's and the peers'.

The net is trained for a few epochs on scikit-learn's digits as 28x28 images. Every case starts at
x, with equal radius, step size and steps. Before any figure each crafts for 512 test images, in
batches as they are measured, and the robust accuracy there, from the eager model (fa.verify, with
1e-5 of room for the others' roundings), must be plain torch's within half a point.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import gate, machine
from bench.store import Row, rows
from bench.timing import interleave
from fastadv.cli import digits

YARDSTICK = "none"
BALL, STEPS_TO_THE_EDGE = fa.Linf(0.06), 10
SIZES = (784, 512, 512, 10)
GATED = 512

Craft = Callable[[Tensor, Tensor], Tensor]


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
        name: _robust_accuracy(name, model, x, y, args.batch, c) for name, c in cases.items()
    }
    expected = accuracy["fastadv, plain model"]
    if max(abs(found - expected) for found in accuracy.values()) > 0.005 + 1e-9:
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
    for name, make in PEERS.items():
        if importlib.util.find_spec(name) is not None:
            library = importlib.import_module(name)
            cases[name] = make(library, model, size, steps)
            if name == "torchattacks":
                cases[f"{name}, compiled"] = make(library, fast, size, steps)
                cases[f"{name}, bfloat16"] = make(library, narrow, size, steps)
    return cases


def _torchattacks(library: Any, model: nn.Module, size: float, steps: int) -> Craft:
    attack = library.PGD(model, eps=BALL.radius, alpha=size, steps=steps, random_start=False)
    return lambda x, y: attack(x, y)


def _foolbox(library: Any, model: nn.Module, size: float, steps: int) -> Craft:
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    options = {"abs_stepsize": size, "steps": steps, "random_start": False}
    attack = library.attacks.LinfProjectedGradientDescentAttack(**options)
    return lambda x, y: attack(wrapped, x, y, epsilons=BALL.radius)[1]


def _art(library: Any, model: nn.Module, size: float, steps: int) -> Craft:
    attacks: Any = importlib.import_module("art.attacks.evasion")
    estimators: Any = importlib.import_module("art.estimators.classification")
    classifier = estimators.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (SIZES[0],), SIZES[-1], clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip

    def craft(x: Tensor, y: Tensor) -> Tensor:
        attack = attacks.ProjectedGradientDescentPyTorch(
            classifier, norm=math.inf, eps=BALL.radius, eps_step=size, max_iter=steps,
            batch_size=len(x), verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), functional.one_hot(y, 10).numpy()))

    return craft


PEERS = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}


def _robust_accuracy(
    name: str, model: nn.Module, x: Tensor, y: Tensor, batch: int, craft: Craft
) -> float:
    starts = range(0, len(x), batch)
    x_adv = torch.cat([craft(x[k : k + batch], y[k : k + batch]) for k in starts])
    verdict = fa.verify(model, x, x_adv, y, BALL, tolerance=1e-5)
    gate.inside(name, verdict.distance, BALL.radius * (1 + 1e-5))
    return verdict.robust_accuracy


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
