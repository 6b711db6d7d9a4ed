"""python -m bench.table: measures the kernels anew, and writes fastadv/engine/speeds.csv.

fa.compile chooses its kernels by that table. Each instruction set and thread count is a part of it,
measured in a process of its own, 3 to 5 minutes long, and written when it is complete: what is not
asked for (--isa, --threads), or was stopped, stays as it was.

Of a part's instruction set are both our kernels and ATen's (oneDNN's, MKL's), as they would be on a
processor that has no more. A case's kernels are compared with float64 first; exit code 1, and
nothing of the part is written, where one is wrong.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

import fastadv as fa
from bench import store, table_calls, table_kernels
from bench.gate import GateError
from bench.table_cases import cases
from bench.timing import Clock
from fastadv.engine import speeds
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.speeds import ISAS, KERNELS, LEARNING, OWN, PASSES, Case

_LIMITS = {  # what holds the libraries under torch to an instruction set
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
             "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
                 "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A line of results/table.csv: how a part of the table was measured."""

    isa: str
    threads: int
    cases: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is asked for, part by part."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=list(reversed(ISAS)))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--op", nargs="+", help="measure, and replace, the rows of these alone")
    parser.add_argument("--seconds", type=float, default=0.1, help="a case takes about so long")
    parser.add_argument("--every", type=int, default=1, help="measure each n-th case alone, to try")
    parser.add_argument("--table", type=Path, default=speeds.PATH)
    parser.add_argument("--out", type=Path, default=store.RESULTS, help="folder of table.csv")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        return _measure(args, args.isa[0], args.threads[0])
    given = ["--seconds", str(args.seconds), "--every", str(args.every)]
    given += ["--table", str(args.table), "--out", str(args.out)]
    given += ["--op", *args.op] if args.op else []
    for isa in args.isa:
        for threads in args.threads:
            command = [sys.executable, "-m", "bench.table", "--here", "--isa", isa]
            code = subprocess.call(
                [*command, "--threads", str(threads), *given],
                env={**os.environ, **_LIMITS[isa], "FASTADV_CPU_CAPABILITY": isa},
            )
            if code:
                return code
    return 0


def _measure(args: argparse.Namespace, isa: str, threads: int) -> int:
    """One part, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    began, rows = time.perf_counter(), []
    # One thread's own time leaves out what else runs on its core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    title = f"{isa}, {threads} thread(s)"
    try:
        with torch.no_grad():
            asked = [case for case in cases() if not args.op or case.op in args.op]
            for case in track(asked[:: args.every], title):
                rows += _rows(case, isa, threads, args.seconds, clock)
        costs = () if args.op else table_calls.cost(20 * args.seconds, clock)
        for op, cost in zip(("graph", "layer"), costs, strict=False):
            rows.append(_row(Case(op, 1, 1, 1, 1, 1, 1, 1), isa, threads, "float32", {OWN: cost}))
    except GateError as error:
        print(f"gate red, nothing of {title} is written: {error}", file=sys.stderr)
        return 1
    write(args.table, isa, threads, rows, args.op)
    seconds = round(time.perf_counter() - began, 1)
    store.save([Part(isa, threads, len(rows), seconds)], args.out / "table.csv")
    print(f"{title}: {len(rows)} rows in {seconds:.0f} s, in {args.table}; {fa.backend()}")
    return 0


def _rows(
    case: Case, isa: str, threads: int, seconds: float, clock: Clock
) -> list[dict[str, object]]:
    """A case's rows: one a precision, measured together."""
    both = multiplies_bfloat16() and case.op not in PASSES | LEARNING
    precisions = ("float32", "bfloat16") if both else ("float32",)
    measured = table_kernels.measure(case, precisions, seconds, clock)
    return [_row(case, isa, threads, p, measured[p]) for p in precisions]


def _row(
    case: Case, isa: str, threads: int, precision: str, seconds: dict[str, float]
) -> dict[str, object]:
    times = {k: f"{1e6 * seconds[k]:.1f}" if k in seconds else "" for k in KERNELS}
    place = {"isa": isa, "threads": threads, "precision": precision, "op": case.op}
    sizes = {"window": case.window, "stride": case.stride, "inputs": case.inputs}
    more = {"outputs": case.outputs, "pixels": case.height, "batch": case.batch}
    return {**place, **sizes, **more, **times}


def write(
    path: Path,
    isa: str,
    threads: int,
    rows: list[dict[str, object]],
    ops: Sequence[str] | None = None,
) -> None:
    """Puts a part, or its rows of some ops, in the place of what the table has of it."""
    kept: list[dict[str, object]] = []
    if path.is_file():
        with path.open(newline="") as file:
            kept += csv.DictReader(file)
    part = isa, str(threads)
    kept = [r for r in kept if (r["isa"], r["threads"]) != part or (ops and r["op"] not in ops)]
    kept += rows
    order = [*dict.fromkeys(case.op for case in cases()), "graph", "layer"]
    kept.sort(
        key=lambda r: (
            -ISAS.index(str(r["isa"])), int(str(r["threads"])), order.index(str(r["op"]))
        )
    )  # fmt: skip
    draft = path.with_suffix(".part")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
