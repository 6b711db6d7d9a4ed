"""PGD-1000 with stop="cycle" and "resolved" against none: forwards, verdicts and time.

Linf, radius .2, step .05, on a small convolutional net trained adversarially (PGD-7) on MNIST,
given as --data mnist.npz (x_train, y_train, x_test, y_test in uint8), or else on scikit-learn's
digits. The gate: the verdicts are those of the full run (for "resolved", of all its iterates), and
forwards are at most 1.1 times the least that detection allows: up to an iterate that fools, or to
the first repeat and one period more, computed from the digests of the full run's iterates.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import fastadv as fa
from bench import gate, images, machine
from bench.images import Images
from bench.store import Row, rows
from bench.timing import Case, interleave

YARDSTICK = "none"
BALL, STEP_SIZE = fa.Linf(0.2), 0.05
Result = fa.AttackResult
STOPS = {"fastadv": "cycle", "resolved": "resolved", "no stop": None}  # the first is the measure


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stop`."""
    parser.add_argument("--data", type=Path, help="mnist.npz (default: scikit-learn's digits)")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--train-steps", type=int, default=600, help="of the net, batch 128")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: the case says the robust accuracy and the forwards behind its time."""
    data = images.load(args.data)
    model, x, y = _trained(data, args.train_steps, args.batch)
    attack = fa.pgd(BALL, STEP_SIZE, args.steps)
    watched = _Watched(model, y)
    full = _craft(attack, watched, x, y)
    names, cases = {}, {}
    for name, stop in STOPS.items():
        stopped = replace(attack, stop=stop)
        result = _craft(stopped, model, x, y)
        _check(stop, result, full, watched)
        names[name] = _text(stop, result, watched)
        cases[name] = _case(stopped, model, x, y)
    times = interleave(cases, args.seconds, least_rounds=3, warm_up=0)
    fixed: dict[str, str | int] = {
        "benchmark": "stop", "shape": "x".join(map(str, x.shape)), "dtype": "float32",
        "norm": f"linf, {data.name}, {args.steps} steps",
        "threads": args.threads, "working_set": machine.fits(4 * x.numel()),
    }  # fmt: skip
    table = rows(times, {}, YARDSTICK, fixed)
    return [[dataclasses.replace(row, case=names[row.case]) for row in table]]


def _craft(attack: fa.Attack, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Result:
    return attack.run(model, x, y, generator=torch.Generator().manual_seed(1))


def _case(attack: fa.Attack, model: nn.Module, x: Tensor, y: Tensor) -> Case:
    return lambda: _craft(attack, model, x, y)


class _Watched:
    """The model, and of every forward the samples' digests and whether they fool it."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        self.model, self.y = model, y
        self.digests: list[Tensor] = []
        self.fooled: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.digests.append(fa.ops.digest(x.detach()))
        self.fooled.append(logits.detach().argmax(1) != self.y)
        return logits

    def least(self, stop: str | None) -> int:
        """The forwards that detection allows, the verdict's among them."""
        digests, fooled = (torch.stack(t[:-1]).T.tolist() for t in (self.digests, self.fooled))
        total = len(digests)
        for iterates, fools in zip(digests, fooled, strict=True):
            at_cycle = _closed(iterates) if stop else len(iterates)
            at_fooled = fools.index(True) + 1 if stop == "resolved" and True in fools else at_cycle
            total += min(at_cycle, at_fooled)
        return total


def _closed(iterates: list[int]) -> int:
    """The first repeat and one period more, or the end."""
    met: dict[int, int] = {}
    for k, digest in enumerate(iterates):
        if digest in met:
            return min(2 * k - met[digest], len(iterates))
        met[digest] = k
    return len(iterates)


def _check(stop: str | None, result: Result, full: Result, watched: _Watched) -> None:
    """The gate."""
    any_iterate = torch.stack(watched.fooled).any(0)
    gate.equal(f"stop={stop}", result.success, any_iterate if stop == "resolved" else full.success)
    if result.forwards > 1.1 * watched.least(stop):
        raise gate.GateError(
            f"stop={stop} took {result.forwards} forwards, and {watched.least(stop)} are enough"
        )


def _text(stop: str | None, result: Result, watched: _Watched) -> str:
    robust = 1 - float(result.success.double().mean())
    least = result.forwards / watched.least(stop)
    return f"{stop}: {robust:.1%} robust, {result.forwards} forwards, {least:.3f}x least"


def _trained(data: Images, steps: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The net in eval mode, and `batch` test images from all over the set with their labels."""
    torch.manual_seed(0)
    side = data.x.shape[-1] // 4
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * side**2, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for k in range(steps):
        radius = BALL.radius * min(1.0, 3 * (k + 1) / steps)  # from the start at .2 it never learns
        loss = fa.training.Madry(fa.pgd(fa.Linf(radius), radius / 4, 7))
        index = torch.randint(len(data.x), (128,))
        optimizer.zero_grad()
        loss(model, data.x[index], data.y[index]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval(), *data.some(batch)
