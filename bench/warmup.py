"""The first gradient through fa.compile: what a user waits for before the first step.

Each is taken in a fresh process that has imported torch and made the net, and nothing else: the
import of Dynamo, tracing and the packing of weights are in the time. Plain torch takes its first
gradient in turn. The gate: the median error against float64's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from bench import fresh, gate, machine
from bench.nets import NETS, image_shape
from bench.store import Row, rows
from bench.timing import Times

YARDSTICK = "none"
ASKED = 5.0  # seconds at most
_PARTS = ("import fastadv", "fa.compile", "forward", "backward", "processor time")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `warmup`."""
    parser.add_argument("--model", choices=NETS, default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--processes", type=int, default=5)


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: the first gradient, its parts, the second one, and plain torch's."""
    found: dict[str, list[float]] = defaultdict(list)
    options = {"model": args.model, "batch": args.batch, "threads": args.threads}
    for _ in range(args.processes):
        plain = fresh.measure("first_gradient", **options, compiled=False)
        ours = fresh.measure("first_gradient", **options, compiled=True)
        gate.close("a gradient", torch.tensor(ours["error"]), torch.zeros(()), 1e-5)
        found["fastadv"].append(ours["whole"])
        for part in _PARTS:
            found[f"of that, {part}"].append(ours[part])
        found["fastadv, second gradient"].append(ours["second"])
        found["plain torch"].append(plain["forward"] + plain["backward"])
        found["plain torch, second gradient"].append(plain["second"])
    shape = (args.batch, *image_shape(args.model))
    fixed: dict[str, str | int] = {
        "benchmark": "warmup", "shape": "x".join(map(str, shape)), "dtype": "float32",
        "norm": args.model, "threads": args.threads,
        "working_set": machine.fits(sum(4 * p.numel() for p in NETS[args.model]().parameters())),
    }  # fmt: skip
    times = {name: Times(tuple(seconds)) for name, seconds in found.items()}
    return [rows(times, {}, YARDSTICK, fixed)]


def red(tables: list[list[Row]]) -> list[str]:
    """Where the median is over ASKED."""
    return [
        f"{row.norm}: the first gradient takes {1e-6 * row.p50_us:.1f} s, asked are {ASKED} s"
        for table in tables
        for row in table
        if row.case == "fastadv" and row.p50_us > 1e6 * ASKED
    ]
