"""What a call costs beyond its kernel: torch.ops, fa.ops and fa.numpy on 8x3x32x32, linf.

"one element" is torch.ops on a tensor of one element, where the kernel has nothing to do: all of
its time is dispatch and checks. "detach" is torch.ops.aten.detach, torch's own least.
"""

from __future__ import annotations

import argparse

import torch

import fastadv as fa
from bench import inputs, machine
from bench.step import check
from bench.store import Row, rows
from bench.timing import Case, interleave

YARDSTICK = "fastadv"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `overhead`."""
    parser.add_argument("--shape", type=inputs.shape, default=inputs.shape("8x3x32x32"))


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table; the bytes are not the point here."""
    ball = fa.Linf(8 / 255)
    x_adv, grad, x = inputs.batch(args.shape, torch.float32)
    check(ball, x_adv, grad, x, 2 / 255)
    size = fa.ops.per_sample(2 / 255, x, "step_size")
    radius = fa.ops.per_sample(ball.radius, x, "radius", round_down=True)
    bounds = ball.bounds_for(x)
    op = torch.ops.fastadv.step_linf_.default
    ones = [t.flatten()[:1].reshape(1, 1, 1, 1).clone() for t in (x_adv, grad, x)]
    arrays = [t.clone().numpy() for t in (x_adv, grad, x)]
    cases: dict[str, Case] = {
        "fastadv": lambda: op(x_adv, grad, x, size, radius, bounds, True),
        "one element": lambda: op(*ones, size, radius, bounds, True),
        "detach": lambda: torch.ops.aten.detach.default(x),
        "fa.ops.step_": lambda: fa.ops.step_(x_adv, grad, x, ball=ball, step_size=2 / 255),
        "fa.numpy.step_": lambda: fa.numpy.step_(*arrays, ball=ball, step_size=2 / 255),
    }
    with torch.no_grad():
        times = interleave(cases, args.seconds, calls=200)
    overhead = 1e6 * times["one element"].quantile(50)
    print(f"a call of torch.ops.fastadv.step_linf_ without its kernel: {overhead:.2f} us")
    fixed: dict[str, str | int] = {
        "benchmark": "overhead", "shape": "x".join(map(str, args.shape)), "dtype": "float32",
        "norm": "linf", "threads": args.threads, "working_set": machine.fits(12 * x.numel()),
    }  # fmt: skip
    return [rows(times, {}, YARDSTICK, fixed)]
