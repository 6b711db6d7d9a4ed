"""The universal update (sum over the batch, step, projection) against a plain reduction.

The yardstick is grads.sum(0), which reads every gradient once, as the update does; the baselines
are eager torch and torch.compile of the update as published (Shafahi et al. 1811.11304).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import fastadv as fa
from bench import gate, inputs, machine
from bench.step import ball_for
from bench.store import Row, rows
from bench.timing import Case, interleave

YARDSTICK = "sum over the batch"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `universal`."""
    parser.add_argument("--shape", type=inputs.shape, default=inputs.shape("64x3x224x224"))
    parser.add_argument("--dtype", choices=inputs.DTYPES, default="float32")
    parser.add_argument("--norm", choices=("linf", "l2", "l1", "all"), default="linf")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """A table a norm."""
    norms = ("linf", "l2", "l1") if args.norm == "all" else (args.norm,)
    return [_measure(args, norm) for norm in norms]


def eager_linf(delta: Tensor, grads: Tensor, radius: float, size: float) -> Tensor:
    """The update in three torch operations."""
    return torch.clamp(delta + size * grads.sum(0).sign(), -radius, radius)


def check(ball: fa.Ball, grads: Tensor, step_size: float) -> None:
    """The gate: near float64 where the sum is not near 0, and in the ball exactly."""
    delta = torch.zeros_like(grads[0])
    got = fa.ops.universal_(delta, grads, ball=ball, step_size=step_size)
    wide = torch.zeros_like(delta, dtype=torch.float64)
    fa.ops.universal_(wide, grads.double(), ball=ball, step_size=step_size)
    gate.close(
        f"universal_{ball.order}_", got, wide, 4 * torch.finfo(grads.dtype).eps * ball.radius
    )
    gate.inside(f"universal_{ball.order}_", ball.norm(got[None]), ball.radius)


def _measure(args: argparse.Namespace, norm: str) -> list[Row]:
    dtype = inputs.DTYPES[args.dtype]
    _, grads, _ = inputs.batch(args.shape, dtype)
    ball = ball_for(norm, grads[0].numel())
    step_size = ball.radius / 4
    check(ball, grads, step_size)
    delta = torch.zeros_like(grads[0])
    size = fa.ops.per_sample(step_size, grads[:1], "step_size")
    radius = fa.ops.per_sample(ball.radius, grads[:1], "radius", round_down=True)
    more = (False, True, 0.05) if norm == "l1" else (False, True)
    op = getattr(torch.ops.fastadv, f"universal_{norm}_")
    cases: dict[str, Case] = {
        "fastadv": lambda: op(delta, None, grads, None, size, radius, 0.0, *more),
        YARDSTICK: lambda: grads.sum(0),
    }
    if norm == "linf":
        cases["eager"] = lambda: eager_linf(delta, grads, ball.radius, step_size)
        if not args.no_compile:
            compiled = torch.compile(eager_linf, dynamic=False)
            cases["torch.compile"] = lambda: compiled(delta, grads, ball.radius, step_size)
    times = interleave(cases, args.seconds)
    element = grads.element_size() * grads.numel()
    fixed: dict[str, str | int] = {
        "benchmark": "universal", "shape": "x".join(map(str, args.shape)), "dtype": args.dtype,
        "norm": norm, "threads": args.threads, "working_set": machine.fits(element),
    }  # fmt: skip
    return rows(times, {"fastadv": element, YARDSTICK: element}, YARDSTICK, fixed)
