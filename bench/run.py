"""python -m bench.run step --shape 64x3x224x224 --dtype float32: gates, measures, prints, stores.

Exit code 1, and no figure, where the gate finds a wrong result; 1 too where a figure is not as the
project asks, and a line says which.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastadv as fa
from bench import store
from bench.gate import GateError
from bench.registry import BENCHMARKS, Benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark that is named, or all with their defaults."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"backend: {fa.backend()}")
    red: list[str] = []
    names = list(BENCHMARKS) if args.benchmark == "all" else [args.benchmark]
    for name in names:
        options = args
        if args.benchmark == "all":
            own = ["--threads", str(args.threads), "--seconds", str(args.seconds)]
            options = _parser().parse_args([name, *own, "--out", str(args.out)])
        try:
            red += _measure(BENCHMARKS[name], options)
        except GateError as error:
            print(f"gate red, nothing is measured: {error}", file=sys.stderr)
            return 1
    for line in red:
        print(f"red: {line}", file=sys.stderr)
    return int(bool(red))


def _measure(benchmark: Benchmark, options: argparse.Namespace) -> list[str]:
    """Shows and stores each table as it comes, and says what is not as asked."""
    red: list[str] = []
    for table in benchmark.run(options):
        store.show(table, benchmark.yardstick)
        print(f"stored in {store.append(table, options.out)}")
        red += benchmark.red([table])
    return red


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    common.add_argument("--seconds", type=float, default=5.0, help="a table takes about so long")
    common.add_argument("--out", type=Path, default=store.RESULTS, help="folder of the CSV files")
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name, parents=[common], help=benchmark.help.splitlines()[0], description=benchmark.help
        )
        benchmark.arguments(command)
    commands.add_parser("all", parents=[common], help="every benchmark with its defaults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
