"""What a step of fa.universal.gradient costs beyond the model: beside a bare forward and backward.

"fastadv" is all that happens between two batches of the loader: checks, the point, loss and
gradient, the update of delta, the tally. The bare case is model(x), cross_entropy and autograd.grad
by x alone on the same batch and model. The loader itself takes the bare step, twice between any two
of fastadv's, so that each pair is of one moment; "the same again" over the bare case is what the
measurement itself is worth. Gate: the step goes where the sign of the bare gradient's sum points.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import gate, machine
from bench.nets import NETS
from bench.pgd import trained
from bench.store import Row, rows
from bench.timing import Times

YARDSTICK = "none"
BARE, AGAIN = "forward and backward", "the same again"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `universal_step`."""
    parser.add_argument("--model", choices=NETS, default="lenet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--train-steps", type=int, default=10, help="of the net before, batch 32")
    parser.add_argument("--compile", action="store_true", help="both on fa.compile(model)")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table; its overhead is the inverse of the bare case's time over fastadv's, less one."""
    model, x, y = trained(args.model, args.train_steps, args.batch)
    model.requires_grad_(False)
    served = fa.compile(model) if args.compile else model
    attack = fa.Attack(fa.Linf(0.1), fa.Steepest(0.01), start="zero")
    check(attack, model, served, x, y)
    clock = _Clock(served, x, y, args.rounds)
    fa.universal.gradient(attack, served, clock)
    times = {name: Times(tuple(spent[3:])) for name, spent in clock.spent.items()}
    for name in ("fastadv", AGAIN):
        least, middle, most = times[name].over(times[BARE])
        print(f"{name} over {BARE}: {middle - 1:+.2%} ({least - 1:+.2%} to {most - 1:+.2%})")
    fixed: dict[str, str | int] = {
        "benchmark": "universal_step", "shape": "x".join(map(str, x.shape)), "dtype": "float32",
        "norm": f"linf, {args.model}{', compiled' if args.compile else ''}",
        "threads": args.threads,
        "working_set": machine.fits(sum(p.numel() * 4 for p in model.parameters())),
    }  # fmt: skip
    return [rows(times, {}, YARDSTICK, fixed)]


def check(attack: fa.Attack, model: nn.Module, served: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gate: delta after one step, but where the gradient in float64 is too near 0 to tell."""
    got = fa.universal.gradient(attack, served, [(x, y)]).delta
    total = _bare(model, x, y).double().sum(0)
    clear = total.abs() > 1e-3 * total.abs().max()
    gate.close("a step", got[clear], 0.01 * total.sign()[clear], 1e-6)


def _bare(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(model(leaf), y), leaf)[0]


class _Clock:
    """A loader that times what its reader does, and the bare step in between."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
        self.model, self.x, self.y, self.rounds = model, x, y, rounds + 3
        self.spent: dict[str, list[float]] = {"fastadv": [], BARE: [], AGAIN: []}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.rounds):
            for name in (BARE, AGAIN):
                began = time.perf_counter()
                _bare(self.model, self.x, self.y)
                self.spent[name].append(time.perf_counter() - began)
            began = time.perf_counter()
            yield self.x, self.y
            self.spent["fastadv"].append(time.perf_counter() - began)
