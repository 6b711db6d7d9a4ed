"""python -m bench.static: what the kernels' machine code shows, and what that means on a datasheet.

Counted, not timed: no device is used. Every variant of fastadv.kernels.variants is compiled for
sm_80, sm_90, sm_100 and gfx942 (bench/aot.py) and its machine code read (bench/machine_code.py);
the launchers run in the PTX emulator, which counts bytes and launches (bench/roofline.py). --write
stores both tables.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table

from bench import roofline
from bench.aot import ARCHES, code_of
from bench.machine_code import Code
from bench.store import RESULTS
from fastadv.kernels.variants import Variant, variants

TABLE, ROOFLINE = RESULTS / "static.csv", RESULTS / "roofline.csv"


@dataclass(frozen=True)
class Row:
    """One variant on one architecture. loads, stores: global accesses in the code, bits:number.
    bytes_element: of the 128-bit accesses, where a program has one tile and no loop repeats any."""

    variant: str
    arch: str
    triton: str
    threads: int
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    occupancy: str
    loads: str
    stores: str
    bytes_element: str
    tensor: str
    barriers: int


def row_of(variant: Variant, code: Code) -> Row:
    element = code.bytes_of_tile / tile_of(variant) if tile_of(variant) else 0.0
    return Row(
        variant=variant.name,
        arch=code.arch if isinstance(code.arch, str) else f"sm_{code.arch}",
        triton=triton.__version__,
        threads=code.threads,
        registers=code.registers,
        stack_bytes=code.stack,
        spills=code.spills,
        shared_bytes=code.shared,
        occupancy=f"{code.occupancy:.3g}" if code.occupancy else "",
        loads=_counts(code.loads),
        stores=_counts(code.stores),
        bytes_element=f"{element:g}" if element else "",
        tensor=_counts(code.tensor),
        barriers=code.barriers,
    )


def tile_of(variant: Variant) -> int:
    """The elements of a program's tile, where all its accesses are to one tile."""
    if variant.elements:
        return int(variant.elements)
    block = variant.constants.get("BLOCK")
    held = variant.name.startswith(("step_l2.", "step_l1.")) and not variant.name.endswith("long")
    return block if held and isinstance(block, int) else 0


def _counts(counted: Counter[int] | Counter[str]) -> str:
    return " ".join(f"{key}:{n}" for key, n in sorted(counted.items(), key=str, reverse=True))


def rows(chosen: Iterable[Variant], arches: Sequence[int | str] = ARCHES) -> list[Row]:
    """The table of some variants."""
    return [row_of(v, code_of(v, arch)) for v in chosen for arch in arches]


def stored(path: Path = TABLE) -> dict[tuple[str, str], dict[str, str]]:
    """The checked-in table, by variant and architecture."""
    with path.open(newline="") as file:
        return {(row["variant"], row["arch"]): row for row in csv.DictReader(file)}


def as_text(row: Row | roofline.Row) -> dict[str, str]:
    """A row as the CSV has it."""
    return {name: str(value) for name, value in asdict(row).items()}


def write(table: Sequence[Row] | Sequence[roofline.Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(table[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def show(table: Sequence[Row] | Sequence[roofline.Row], title: str) -> None:
    shown = Table(title=title)
    names = [f.name for f in fields(table[0])]
    for name in names:
        shown.add_column(name)
    for row in table:
        shown.add_row(*(str(getattr(row, name)) for name in names))
    Console(width=200).print(shown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--only", default="", help="variants whose names begin so")
    parser.add_argument(
        "--arch", nargs="+", default=[f"{a}" for a in ARCHES], help="80, gfx942, .."
    )
    parser.add_argument("--write", action="store_true", help="store the tables")
    args = parser.parse_args(argv)
    arches = [a if a.startswith("gfx") else int(a) for a in args.arch]
    table = rows([v for v in variants() if v.name.startswith(args.only)], arches)
    counted = roofline.rows()
    show(table, "machine code, counted, not timed")
    show(counted, "launches and bytes by emulation; microseconds at a datasheet's bandwidth")
    if args.write:
        if args.only or arches != list(ARCHES):
            parser.error("--write stores whole tables: leave --only and --arch out")
        write(table, TABLE)
        write(counted, ROOFLINE)
        print(f"stored in {TABLE} and {ROOFLINE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
