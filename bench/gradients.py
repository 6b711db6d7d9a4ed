"""Per-sample input gradients against float64's: the engine's error, and plain torch's own.

On each net, trained for a few steps as `pgd` does it: the relative error, in the 2-norm, of each
sample's gradient of the cross-entropy; its median and its worst over the batch; and the worst once
float64's ReLUs pass, and its poolings take, what the engine's do (bench/flips.py): a unit that one
rounds to 1e-8 and the other to -1e-8 changes a gradient by more than all arithmetic. Nets that
fa.compile leaves to plain torch go through the engine here.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

import fastadv as fa
from bench import flips
from bench.nets import NETS
from bench.pgd import trained
from bench.store import Measured

YARDSTICK = "none"
MEDIAN, WORST = 1e-5, 1e-4  # at most
_TINY = ("linear", "mlp", "tiny_cnn")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gradients`."""
    named = [name for name in NETS if name not in _TINY]
    parser.add_argument("--models", choices=NETS, nargs="+", default=named)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train-steps", type=int, default=30, help="of the net, batch 32")


@dataclass(frozen=True)
class Row(Measured):
    """Relative errors."""

    median: float
    worst: float
    worst_with_masks: float


def run(args: argparse.Namespace) -> Iterator[list[Row]]:
    """A table a net."""
    for name in args.models:
        model, x, y = trained(name, args.train_steps, args.batch)
        fast = fa.compile(model)
        fast._bypass = None
        exact = copy.deepcopy(model).double()
        yield [
            Row("gradients", "x".join(map(str, x.shape)), "float32",
                f"{name}, {args.train_steps} steps", args.threads, case,
                *_errors(exact, one, x, y))
            for case, one in (("fastadv", fast), ("plain torch", model))
        ]  # fmt: skip


def _errors(exact: nn.Module, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    plain, fitted = flips.with_sides(model, exact, x, y, WORST)
    return float(plain.median()), float(plain.max()), float(fitted.max())


def red(tables: list[list[Row]]) -> list[str]:
    """Where the engine's errors are over MEDIAN or, with masks, over WORST."""
    return [
        f"{row.norm}: the median error is {row.median:.2g} (asked: {MEDIAN}), the worst with masks "
        f"{row.worst_with_masks:.2g} (asked: {WORST})"
        for table in tables
        for row in table
        if row.case == "fastadv" and not (row.median <= MEDIAN and row.worst_with_masks <= WORST)
    ]
