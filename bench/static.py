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
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table

from bench import aot, roofline
from bench.aot import ARCHES, code_of
from bench.machine_code import Code, read_cubin
from bench.store import RESULTS
from fastadv.kernels import dense_variants
from fastadv.kernels.variants import Variant, variants

TABLE, ROOFLINE = RESULTS / "static.csv", RESULTS / "roofline.csv"
CUDA = aot.ROOT / "tests" / "emulator" / "kernels.cu"  # csrc/cuda's templates, some of each
CUDA_NAMES = {  # a part of a kernel's mangled name, and the threads of its blocks
    "cuda.step_linf.fp32": ("step_linfIff", 256),
    "cuda.step_linf.bf16": ("step_linfINS_8bfloat16E", 256),
    "cuda.step_l2.fp32": ("step_l2IffLb1ELi256E", 256),
    "cuda.step_l2.fp32.long": ("step_l2IffLb1ELi512E", 512),
    "cuda.step_l1.fp32": ("step_l1IffLb1ELi256E", 256),
    "cuda.step_l1.fp32.long": ("step_l1IffLb1ELi512E", 512),
    "cuda.accumulate.fp32": ("accumulateIf", 128),
    "cuda.digest.fp32": ("digestIf", 256),
    "cuda.uniform.fp32": ("uniformIf", 256),
    "cuda.cross_entropy.fp32": ("headILNS_4HeadE0ELb0EfLi32E", 128),
    "cuda.cross_entropy.fp32.long": ("headILNS_4HeadE0ELb0EfLi512E", 512),
}


@dataclass(frozen=True)
class Row:
    """One variant on one architecture. loads, stores: global accesses in the code, bits:number.
    bytes_element: of the 128-bit accesses, where a program has one tile and no loop repeats any."""

    variant: str
    arch: str
    compiler: str
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


HEADS = ("cross_entropy", "binary_cross_entropy", "margin", "kl", "dlr", "dlr_targeted")
HOPPER = "dense.bf16.784-256-256-10.linf.64"  # of a size that only sm_90's wgmma takes


def tabled(arches: Sequence[int | str] = ARCHES) -> list[tuple[Variant, int | str]]:
    """What the table has: linf in every dtype, heads in float32, all else in float32 and bfloat16.

    The others have the same code at other widths, and would be two thirds of the table.
    """
    found = []
    for v in variants():
        family, dtype = v.name.split(".")[:2]
        kept = ("fp32",) if family in HEADS else ("fp32", "bf16", "i32", "i16")
        if family == "step_linf" or dtype in kept:
            found.append(v)
    pairs = [(v, arch) for v in found for arch in arches]
    for v in dense_variants.variants():
        takes = (90,) if v.name == HOPPER else (80, 90, 100)
        pairs += [(v, arch) for arch in arches if arch in takes]
    return pairs


def row_of(code: Code, compiler: str, tile: int = 0) -> Row:
    """`tile`: the elements of a program's one tile, where it has one."""
    element = code.bytes_of_tile / tile if tile else 0.0
    return Row(
        variant=code.name,
        arch=code.arch if isinstance(code.arch, str) else f"sm_{code.arch}",
        compiler=compiler,
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
    held = variant.name.startswith(("step_l2.", "step_l1.")) and variant.name[-1].isdigit()
    return block if held and isinstance(block, int) else 0


def _counts(counted: Counter[int] | Counter[str]) -> str:
    return " ".join(f"{key}:{n}" for key, n in sorted(counted.items(), key=str, reverse=True))


def rows(chosen: Iterable[tuple[Variant, int | str]]) -> list[Row]:
    """The table of some variants on some architectures."""
    compiler = f"triton {triton.__version__}"
    return [row_of(code_of(v, arch), compiler, tile_of(v)) for v, arch in chosen]


def cuda_rows(arches: Sequence[int | str]) -> list[Row]:
    """The same of csrc/cuda, where nvcc is installed."""
    if aot.nvcc() is None:
        return []
    found = []
    for arch in (a for a in arches if isinstance(a, int)):
        cubin = aot.compile_cuda(CUDA, arch, "cubin").read_bytes()
        codes = read_cubin(cubin, arch, {})
        for name, (part, threads) in CUDA_NAMES.items():
            (code,) = [c for c in codes if part in c.name]
            found.append(row_of(replace(code, name=name, threads=threads), aot.nvcc_version()))
    return found


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


def differences(row: Row, stored: dict[str, str]) -> list[str]:
    """What a fresh row and the stored one disagree in: anything, with the compiler that wrote it,
    else what no compiler may change."""
    fresh = as_text(row)
    names = list(fresh)
    if fresh["compiler"] != stored["compiler"]:
        names = ["spills", "stack_bytes", "bytes_element"]
    return [f"{n} {stored[n]!r}, now {fresh[n]!r}" for n in names if fresh[n] != stored[n]]


def check(table: Sequence[Row]) -> int:
    """Prints every difference; 1 if there is any."""
    there = stored()
    found = [(row, differences(row, there[row.variant, row.arch])) for row in table]
    for row, differs in found:
        for difference in differs:
            print(f"{row.variant} {row.arch}: {difference}", file=sys.stderr)
    return int(any(differs for _, differs in found))


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
    parser.add_argument("--check", action="store_true", help="compare with the stored table")
    args = parser.parse_args(argv)
    arches = [a if a.startswith("gfx") else int(a) for a in args.arch]
    table = rows(pair for pair in tabled(arches) if pair[0].name.startswith(args.only))
    table += [row for row in cuda_rows(arches) if row.variant.startswith(args.only)]
    if args.check:
        return check(table)
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
