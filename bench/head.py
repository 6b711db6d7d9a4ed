"""The fused heads (loss, gradient of the logits, prediction) against F.cross_entropy and autograd.

Two passes over the logits are the least: they are read once, the gradient is written once.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional

import fastadv as fa
from bench import gate, inputs, machine
from bench.store import Row, rows
from bench.timing import Case, interleave
from fastadv.reference_head import head as reference_head

YARDSTICK = "copy"
OBJECTIVES = {o.name: o for o in (fa.cross_entropy, fa.margin, fa.dlr)}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `head`."""
    parser.add_argument("--shape", type=inputs.shape, default=None, help="samples x classes")
    parser.add_argument("--dtype", choices=inputs.DTYPES, default="float32")
    parser.add_argument("--objective", choices=OBJECTIVES, default="cross_entropy")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """A table a shape: 512x10, 128x100 and 64x1000, or the one that is named."""
    shapes = [args.shape] if args.shape else [(512, 10), (128, 100), (64, 1000)]
    return [_measure(args, sizes) for sizes in shapes]


def _measure(args: argparse.Namespace, sizes: tuple[int, ...]) -> list[Row]:
    objective, dtype = OBJECTIVES[args.objective], inputs.DTYPES[args.dtype]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(sizes, generator=generator).to(dtype)
    y = torch.randint(sizes[1], sizes[:1], generator=generator)
    number = objective.head_number
    assert number is not None
    loss, grad, prediction = fa.ops.head(logits, y, None, number, False)
    wide = reference_head(logits.double(), y, None, number, False)
    room = 64 * torch.finfo(dtype).eps
    gate.close(f"{objective} loss", loss, wide[0], room)
    gate.close(f"{objective} gradient", grad, wide[1], room)
    gate.equal(f"{objective} prediction", prediction, logits.argmax(1))
    out = torch.empty_like(logits)
    cases: dict[str, Case] = {
        "fastadv": lambda: torch.ops.fastadv.head(logits, y, None, number, False),
        "copy": lambda: out.copy_(logits),
        "eager": lambda: _eager(objective, logits, y),
    }
    times = interleave(cases, args.seconds / 3, calls=20)
    element = logits.element_size() * logits.numel()
    fixed: dict[str, str | int] = {
        "benchmark": "head", "shape": "x".join(map(str, sizes)), "dtype": args.dtype,
        "norm": objective.name, "threads": args.threads, "working_set": machine.fits(2 * element),
    }  # fmt: skip
    return rows(times, {"fastadv": 2 * element, "copy": 2 * element}, YARDSTICK, fixed)


def _eager(objective: fa.Objective, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = logits.detach().requires_grad_()
    if objective == fa.cross_entropy:
        loss = functional.cross_entropy(z, y, reduction="none")
    else:
        loss = objective(z, y)
    (grad,) = torch.autograd.grad(loss.sum(), z)
    return loss, grad, z.argmax(1)
