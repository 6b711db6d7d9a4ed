"""Memory of one gradient by the input: activations and workspace, against plain torch's.

peak_mib: of the process, above what stood before, in MiB. torch_mib: of torch's allocator alone,
which does not see the workspaces of kernels, ours or oneDNN's. Packed weights, which stay from step
to step, have a row of their own. How each is measured stands in bench/step_memory.py. The gate: the
gradient's median error against float64's.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from bench import fresh, gate
from bench.nets import NETS, image_shape
from bench.store import Measured

YARDSTICK = "none"
ASKED = 0.5  # of plain torch's, at most


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `memory`."""
    parser.add_argument("--model", choices=NETS, default="resnet18")
    parser.add_argument("--batch", type=int, default=32)


@dataclass(frozen=True)
class Row(Measured):
    """of_plain: the peak over plain torch's."""

    peak_mib: float
    torch_mib: float
    of_plain: float


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: a step of both, and the packed weights."""
    options = {"model": args.model, "batch": args.batch, "threads": args.threads}
    plain = fresh.measure("step_memory", **options, compiled=False)
    ours = fresh.measure("step_memory", **options, compiled=True)
    gate.close("a gradient", torch.tensor(ours["error"]), torch.zeros(()), 1e-5)
    weights = sum(p.numel() * p.element_size() for p in NETS[args.model]().parameters())
    cases = {
        "fastadv": (ours["peak"], ours["allocated"]),
        "plain torch": (plain["peak"], plain["allocated"]),
        "packed weights": (ours["packed"], ours["packed"]),
        "the model's weights": (weights, weights),
    }
    shape = "x".join(map(str, (args.batch, *image_shape(args.model))))
    return [
        [
            Row("memory", shape, "float32", args.model, args.threads, case, _mib(peak),
                _mib(allocated), round(peak / plain["peak"], 3))
            for case, (peak, allocated) in cases.items()
        ]
    ]  # fmt: skip


def _mib(size: float) -> float:
    return round(size / 2**20, 1)


def red(tables: list[list[Row]]) -> list[str]:
    """Where a step takes more than ASKED of plain torch's."""
    return [
        f"{row.norm}: a step takes {row.of_plain:.2f} of plain torch's memory, asked are {ASKED}"
        for table in tables
        for row in table
        if row.case == "fastadv" and row.of_plain > ASKED
    ]
