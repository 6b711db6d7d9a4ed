"""Rows: printed as a table, appended to bench/results/<benchmark>.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import facts
from bench.timing import Times

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measured:
    """One case of one run: what was measured, on what."""

    benchmark: str
    shape: str
    dtype: str
    norm: str
    threads: int
    case: str


@dataclass(frozen=True)
class Row(Measured):
    """Times are of a call; bytes those that the algorithm must move.

    speedup: the case's time over fastadv's, round by round; of fastadv itself 1. share: GB/s over
    the yardstick's (a triad, or a plain reduction) in the same run.
    """

    p20_us: float
    p50_us: float
    p80_us: float
    bytes: int
    gb_s: float
    share: float
    speedup_p20: float
    speedup_p50: float
    speedup_p80: float
    working_set: str


def rows(
    times: dict[str, Times], moved: dict[str, int], yardstick: str, fixed: dict[str, str | int]
) -> list[Row]:
    """One row a case. `moved`: bytes a call, by case; `fixed`: the columns that all share."""
    ours = times["fastadv"]
    speed = {name: moved.get(name, 0) / times[name].quantile(50) / 1e9 for name in times}
    table = []
    for name, measured in times.items():
        p20, p50, p80 = measured.over(ours)
        table.append(
            Row(
                case=name,
                p20_us=round(1e6 * measured.quantile(20), 3),
                p50_us=round(1e6 * measured.quantile(50), 3),
                p80_us=round(1e6 * measured.quantile(80), 3),
                bytes=moved.get(name, 0),
                gb_s=round(speed[name], 2),
                share=round(speed[name] / speed[yardstick], 3) if speed.get(yardstick) else 0.0,
                speedup_p20=round(p20, 3),
                speedup_p50=round(p50, 3),
                speedup_p80=round(p80, 3),
                **fixed,  # type: ignore[arg-type]
            )
        )
    return table


def show(measured: Sequence[Measured], yardstick: str) -> None:
    """Prints the rows of one run: times, or what else a benchmark has columns for."""
    times = [row for row in measured if isinstance(row, Row)]
    if times:
        _show_times(times, yardstick)
        return
    own = [f.name for f in fields(measured[0])][len(fields(Measured)) :]
    shared = ("shape", "norm", "case")
    first = measured[0]
    table = Table(
        title=f"{first.benchmark}, {first.dtype}, {first.threads} thread(s)", box=box.SIMPLE_HEAD
    )
    for column in (*shared, *own):
        table.add_column(column, justify="left" if column in shared else "right")
    for row in measured:
        table.add_row(*(_text(getattr(row, column)) for column in (*shared, *own)))
    Console(width=130).print(table)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show_times(measured: Sequence[Row], yardstick: str) -> None:
    first = measured[0]
    title = f"{first.benchmark} {first.norm} {first.shape} {first.dtype}, {first.threads} thread(s)"
    table = Table(title=f"{title}, working set in {first.working_set}", box=box.SIMPLE_HEAD)
    for column in ("case", "p20 us", "p50 us", "p80 us", "GB/s", f"of {yardstick}", "time / ours"):
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for row in measured:
        table.add_row(
            row.case, f"{row.p20_us:.1f}", f"{row.p50_us:.1f}", f"{row.p80_us:.1f}",
            f"{row.gb_s:.1f}" if row.bytes else "", f"{row.share:.0%}" if row.bytes else "",
            f"{row.speedup_p50:.2f}x ({row.speedup_p20:.2f}-{row.speedup_p80:.2f})",
        )  # fmt: skip
    Console(width=110).print(table)


def append(measured: Sequence[Measured], folder: Path = RESULTS) -> Path:
    """Adds the rows to the benchmark's CSV. Raises ValueError if its columns are others."""
    return save(measured, folder / f"{measured[0].benchmark}.csv")


def save(table: Sequence[DataclassInstance], path: Path, anew: bool = False) -> Path:
    """Adds dataclasses of one kind to a CSV, or writes it anew, with the machine's facts in front.

    Raises ValueError, with nothing written, where the columns are not those that stand there.
    """
    columns = [*facts(), *(field.name for field in fields(table[0]))]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not anew:
        with path.open(newline="") as file:
            there = next(csv.reader(file), columns)
        if there != columns:
            raise ValueError(f"{path} has other columns than this version writes: move it away")
    with path.open("w" if anew else "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerows({**facts(), **asdict(row)} for row in table)
    return path
