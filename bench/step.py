"""One ascent step (direction, step, projection, box) against eager and compiled torch, and a triad.

Baselines: eager torch as torchattacks writes PGD and PGDL2, as ART's PyTorch attack writes its step
and projection (linf, l2), and the first under torch.compile; in l1 neither has such a step. The
yardstick is an in-place triad, a += s * b * c, on the same three buffers: it reads
three and writes one, as the linf step does. Bytes are those that each algorithm must move: linf 16
an element in float32; l2 and l1 28, in two passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import fastadv as fa
from bench import gate, inputs, machine, peers
from bench.store import Row, rows
from bench.timing import Case, interleave
from fastadv import reference

YARDSTICK = "triad"
BALLS: dict[str, tuple[type[fa.Ball], float]] = {  # usual radii for 3072 elements
    "linf": (fa.Linf, 8 / 255),
    "l2": (fa.L2, 0.5),
    "l1": (fa.L1, 12.0),
}
PASSES = {"linf": 4, "l2": 7, "l1": 7}  # elements read or written, an element of the batch


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `step`."""
    parser.add_argument("--shape", type=inputs.shape, default=inputs.shape("64x3x224x224"))
    parser.add_argument("--dtype", choices=inputs.DTYPES, default="float32")
    parser.add_argument("--norm", choices=(*BALLS, "all"), default="all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """A table a norm."""
    norms = list(BALLS) if args.norm == "all" else [args.norm]
    return [_measure(args, norm) for norm in norms]


def ball_for(norm: str, size: int) -> fa.Ball:
    """A usual ball for samples of `size` elements."""
    kind, radius = BALLS[norm]
    growth = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[norm]
    return kind(radius * (size / 3072) ** growth)


def check(ball: fa.Ball, x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float) -> None:
    """The gate: linf equals the reference bit for bit; l2 and l1 are near float64 and feasible."""
    got = fa.ops.step_(x_adv.clone(), grad, x, ball=ball, step_size=step_size)
    if ball.order == "linf":
        expected = x_adv.clone()
        size, radius, box = _arguments(ball, x, step_size)
        reference.step_linf_(expected, grad, x, size, radius, box, True)
        gate.equal("step_linf_", got, expected)
    else:
        wide = [t.double() for t in (x_adv, grad, x)]
        expected = fa.ops.step_(*wide, ball=ball, step_size=step_size)
        # A rounding of x, and the slack that keeps the norm below the radius, all on one element.
        room = torch.finfo(x.dtype).eps + 4 * reference.slack(x_adv) * ball.radius
        gate.close(f"step_{ball.order}_", got, expected, 2 * room)
    gate.inside(f"step_{ball.order}_", ball.norm(got.double() - x.double()), ball.radius)


def _arguments(ball: fa.Ball, x: Tensor, step_size: float) -> tuple[Tensor, Tensor, Tensor | None]:
    size = fa.ops.per_sample(step_size, x, "step_size")
    radius = fa.ops.per_sample(ball.radius, x, "radius", round_down=True)
    return size, radius, ball.bounds_for(x)


def _measure(args: argparse.Namespace, norm: str) -> list[Row]:
    dtype = inputs.DTYPES[args.dtype]
    x_adv, grad, x = inputs.batch(args.shape, dtype)
    ball = ball_for(norm, x[0].numel())
    step_size = ball.radius / 4
    check(ball, x_adv, grad, x, step_size)
    settings = _arguments(ball, x, step_size)
    more = (True, 0.05) if norm == "l1" else (True,)
    op = getattr(torch.ops.fastadv, f"step_{norm}_")
    cases: dict[str, Case] = {
        "fastadv": lambda: op(x_adv, grad, x, *settings, *more),
        "triad": lambda: x_adv.addcmul_(grad, x, value=0.0),
        "copy": lambda: x_adv.copy_(x),
    }
    cases |= _eager(norm, x_adv, grad, x, ball.radius, step_size, not args.no_compile)
    times = interleave(cases, args.seconds)
    element = x.element_size() * x.numel()
    moved = {"fastadv": PASSES[norm] * element, "triad": 4 * element, "copy": 2 * element}
    fixed: dict[str, str | int] = {
        "benchmark": "step", "shape": "x".join(map(str, args.shape)), "dtype": args.dtype,
        "norm": norm, "threads": args.threads, "working_set": machine.fits(3 * element),
    }  # fmt: skip
    return rows(times, moved, YARDSTICK, fixed)


def _eager(
    norm: str,
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    radius: float,
    step_size: float,
    fused: bool,
) -> dict[str, Case]:
    def case(step: Callable[..., Tensor]) -> Case:
        return lambda: step(x_adv, grad, x, radius, step_size)

    steps = {f"{who} (eager)": step for who, step in peers.STEPS[norm].items()}
    if fused and steps:
        who, step = next(iter(peers.STEPS[norm].items()))
        steps[f"{who} (torch.compile)"] = torch.compile(step, dynamic=False)
    return {name: case(step) for name, step in steps.items()}
