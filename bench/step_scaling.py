"""What an attack's cost grows with: PGD, linf, on a ResNet, compiled and not.

One table a point: batches, at the first of --depths (blocks of a width; 2 is ResNet-18) and of
--steps; then, at --batch, depths, steps and threads. The gate of `pgd` runs once, on the first net.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor, nn

import fastadv as fa
from bench import machine
from bench.nets import resnet18
from bench.pgd import BALL, STEP_SIZE, check_gradient
from bench.store import Row, rows
from bench.timing import interleave

YARDSTICK = "none"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `step_scaling`."""
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 1, 3])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--most-threads", type=int, default=2)


def run(args: argparse.Namespace) -> list[list[Row]]:
    """A table a point."""
    torch.manual_seed(0)
    nets = {depth: _Pair(resnet18(depth).eval()) for depth in args.depths}
    first, steps = args.depths[0], args.steps[0]
    x, y = torch.rand(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    check_gradient(nets[first].plain, nets[first].fast, x, y)
    points = [(b, first, steps, args.threads) for b in args.batches]
    points += [(args.batch, depth, steps, args.threads) for depth in args.depths]
    points += [(args.batch, first, n, args.threads) for n in args.steps]
    points += [(args.batch, first, steps, n) for n in range(1, args.most_threads + 1)]
    return [_point(nets[depth], b, depth, k, n, args) for b, depth, k, n in points]


class _Pair:
    def __init__(self, plain: nn.Module) -> None:
        self.plain, self.fast = plain, fa.compile(plain)


def _point(
    nets: _Pair, batch: int, depth: int, steps: int, threads: int, args: argparse.Namespace
) -> list[Row]:
    x: Tensor = torch.rand(batch, 3, 32, 32)
    attack, y = fa.pgd(BALL, STEP_SIZE, steps, start="zero"), torch.zeros(batch).long()
    cases = {"fastadv": partial(attack, nets.fast, x, y)}
    cases["fastadv, plain model"] = partial(attack, nets.plain, x, y)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = interleave(cases, args.seconds, least_rounds=3, warm_up=1)
    finally:
        torch.set_num_threads(before)
    weights = sum(p.numel() * p.element_size() for p in nets.plain.parameters())
    fixed: dict[str, str | int] = {
        "benchmark": "step_scaling", "shape": "x".join(map(str, x.shape)), "dtype": "float32",
        "norm": f"linf, ResNet of {8 * depth + 2} layers, {steps} steps", "threads": threads,
        "working_set": machine.fits(weights),
    }  # fmt: skip
    return rows(times, {}, YARDSTICK, fixed)
