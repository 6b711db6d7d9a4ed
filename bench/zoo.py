"""Whole attacks on many nets, tiny ones among them, compiled against plain: none may be slower.

Two loops, fa.pgd and torchattacks' PGD, linf, from x. ratio: time on fa.compile(model) over time on
the model itself, round by round. A row is red where 80% of the rounds are slower by more than 3%
(p20 of the ratio over 1.03): the rest is noise, of a machine with neighbours. The gate of `pgd`
runs first on every net and batch; where it is red there is no figure, and the run goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

import fastadv as fa
from bench import attacks, gate
from bench.nets import NETS
from bench.pgd import BALL, STEP_SIZE, check_gradient, trained
from bench.store import Measured
from bench.timing import Case, interleave
from fastadv.engine import Compiled

YARDSTICK = "none"
SLOWER = 1.03
_LEAST = 0.01  # seconds of one measurement: shorter attacks are made several times


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zoo`."""
    parser.add_argument("--models", choices=NETS, nargs="+", default=list(NETS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--steps", type=int, default=3)


@dataclass(frozen=True)
class Row(Measured):
    """case: the loop. served_by: the engine's kernels, or plain torch."""

    served_by: str
    ours_us: float
    plain_us: float
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float


def run(args: argparse.Namespace) -> Iterator[list[Row]]:
    """A table a net."""
    for name in args.models:
        model, x, y = trained(name, 1, max(args.batches))
        fast = fa.compile(model)
        yield [
            row
            for batch in args.batches
            for row in _rows(name, model, fast, x[:batch], y[:batch], args)
        ]


def _rows(
    name: str, model: nn.Module, fast: Compiled, x: Tensor, y: Tensor, args: argparse.Namespace
) -> list[Row]:
    row = partial(
        Row, "zoo", "x".join(map(str, x.shape)), "float32", f"{name}, {args.steps} steps",
        args.threads,
    )  # fmt: skip
    try:
        check_gradient(model, fast, x, y)
    except gate.GateError as error:
        return [row(f"gate red: {error}", "", *[math.nan] * 5)]
    compiled, plain = (_loops(one, x, y, args.steps) for one in (fast, model))
    cases = {f"{loop}, plain": case for loop, case in plain.items()} | compiled
    began = time.perf_counter()
    plain["fa.pgd"]()
    calls = math.ceil(_LEAST / (time.perf_counter() - began))
    times = interleave(cases, args.seconds, least_rounds=5, calls=calls, warm_up=2)
    table = []
    for loop in compiled:
        ours, theirs = times[loop], times[f"{loop}, plain"]
        medians = (round(1e6 * t.quantile(50), 1) for t in (ours, theirs))
        ratios = (round(ratio, 3) for ratio in ours.over(theirs))
        table.append(row(loop, _served_by(fast, x, loop == "fa.pgd"), *medians, *ratios))
    return table


def _loops(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Case]:
    attack = fa.pgd(BALL, STEP_SIZE, steps, start="zero")
    loops: dict[str, Case] = {"fa.pgd": partial(attack, model, x, y)}
    peers = attacks.peers(model, BALL, STEP_SIZE, steps, ("torchattacks",))
    return loops | {name: partial(craft, x, y) for name, craft in peers.items()}


def _served_by(fast: Compiled, x: Tensor, ours: bool) -> str:
    leaf = x.clone().requires_grad_()
    if ours:
        with fast.held():
            plain = fast._is_plain(leaf)
        return "dense stack" if fast._plans.found else "plain torch" if plain else "engine"
    return "plain torch" if fast._is_plain(leaf) else "engine"


def red(tables: list[list[Row]]) -> list[str]:
    """The rows that are slower than plain torch, or wrong."""
    return [
        f"{row.norm}, {row.shape}, {row.case}: {row.ratio_p50:.3f} of plain torch's time "
        f"({row.ratio_p20:.3f} to {row.ratio_p80:.3f})"
        for table in tables
        for row in table
        if not row.ratio_p20 <= SLOWER  # NaN of a red gate too
    ]
