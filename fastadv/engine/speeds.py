"""Measured seconds of each kernel, read from speeds.csv, which `python -m bench.table` writes.

What was not measured follows from the nearest cases that were: a pure function of the case, the
instruction set and the threads. Nothing is measured at run time, so the same model is served in
the same way wherever these are the same.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastadv.ops import backend

PATH = Path(__file__).with_name("speeds.csv")
ISAS = ("baseline", "avx2", "avx512")  # as fastadv.backend() names them, the slowest first
# ATen: what a rewritten graph runs, images channels last. PLAIN: what torch runs without us, on
# contiguous ones. OWN: the only kernel of ours for an op that is no convolution.
WINOGRAD, DIRECT, FOLD, DEPTHWISE, OWN, ATEN, PLAIN = KERNELS = (
    "winograd", "direct", "fold", "depthwise", "own", "aten", "plain",
)  # fmt: skip
PASSES = frozenset(  # over numbers, without a product of channels
    f"{op}{way}" for op in ("depthwise", "pool", "norm", "layer norm") for way in ("", " gradient")
)
LEARNING = frozenset(("weight gradient", "packing"))  # what only weights that learn ask for
_TORCHS = (ATEN, PLAIN)
_NEIGHBOURS = 4


class Case(NamedTuple):
    """A layer's call: what its seconds depend on."""

    op: str
    window: float  # the square root of its taps
    stride: float
    inputs: int
    outputs: int
    height: int  # of a convolution's output, whether that is computed or its gradient given
    width: int
    batch: Any  # a number, or a SymInt of one

    def work(self, kernel: str) -> float:
        """What seconds grow with: products or, where there are none, numbers."""
        height, width = self.height, self.width
        if kernel == WINOGRAD:  # tiles of 4x4, full or not
            height, width = -(-height // 4) * 4, -(-width // 4) * 4
        channels = self.inputs * (1 if self.op in PASSES else self.outputs)
        return float(self.window**2 * channels * height * width * self.batch)


class Call(NamedTuple):
    """A case, and which kernel serves it. Its batch may be a size that is not known yet."""

    kernel: str
    case: Case
    precision: str


class Measured(NamedTuple):
    case: Case
    seconds: Mapping[str, float]  # by kernel


@dataclass(frozen=True)
class Speeds:
    """What was measured on one instruction set and thread count, by op and precision."""

    measured: Mapping[tuple[str, str], list[Measured]]
    _own: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def seconds(self, kernel: str, case: Case, precision: str) -> float | None:
        """Seconds of a kernel for a case; None where it was measured for none of the kind.

        A call's own cost, which is the least that was measured of the kernel, and the rest, which
        grows with the work: so are the nearest cases' seconds brought to this one, and averaged.
        """
        found = [m for m in self.measured.get((case.op, precision), ()) if kernel in m.seconds]
        if not found or min(case[3:]) <= 0:
            return None
        key = case.op, precision, kernel
        own = self._own.setdefault(key, min(m.seconds[kernel] for m in found))
        total, weights = 0.0, 0.0
        for distance, near in _nearest(case, found):
            scale = case.work(kernel) / near.case.work(kernel)
            seconds = own + (near.seconds[kernel] - own) * scale
            if not distance:
                return seconds
            total += seconds / distance**2
            weights += 1 / distance**2
        return total / weights


def _nearest(case: Case, found: list[Measured]) -> list[tuple[float, Measured]]:
    """The nearest cases, of one window and stride, and their squared distances."""
    forms = {(m.case.window, m.case.stride) for m in found}
    form = min(sorted(forms), key=lambda f: _apart((case.window, case.stride), f))
    same = [m for m in found if (m.case.window, m.case.stride) == form]
    distances = [(_apart(case[3:], m.case[3:]), i) for i, m in enumerate(same)]
    return [(distance, same[i]) for distance, i in sorted(distances)[:_NEIGHBOURS]]


def _apart(one: Iterable[float], other: Iterable[float]) -> float:
    """The squared distance of the numbers' logarithms."""
    return sum(math.log2(a / b) ** 2 for a, b in zip(one, other, strict=True))


def current() -> Speeds:
    """The speeds for what serves now, with as many threads as torch has now."""
    cpu = backend().cpu
    ours = next((isa for isa in ISAS if f"({isa})" in cpu), ISAS[0])
    # FASTADV_CPU_CAPABILITY slows our kernels alone down: ATen's are as fast as ever.
    theirs = torch.backends.cpu.get_cpu_capability().lower()
    aten = max(ours, theirs, key=lambda isa: ISAS.index(isa) if isa in ISAS else -1)
    return _speeds(ours, aten, threads())


def threads() -> int:
    """The thread count whose rows serve: the largest measured that torch has, or the least."""
    return _threads(torch.get_num_threads(), tuple(table()))


@lru_cache
def _threads(mine: int, parts: Sequence[tuple[str, int]]) -> int:
    counts = sorted({count for _, count in parts})
    return max((c for c in counts if c <= mine), default=counts[0])


@lru_cache
def _speeds(ours: str, aten: str, count: int) -> Speeds:
    """Our kernels on one instruction set, and ATen's on another."""
    rows, others = (_of(isa, count) for isa in (ours, aten))
    return Speeds(rows if ours == aten else {k: _joined(rows[k], others.get(k, [])) for k in rows})


def _joined(rows: list[Measured], others: list[Measured]) -> list[Measured]:
    theirs = {case: {k: s for k, s in found.items() if k in _TORCHS} for case, found in others}
    return [Measured(c, {**found, **theirs[c]}) for c, found in rows if c in theirs]


def _of(isa: str, count: int) -> Mapping[tuple[str, str], list[Measured]]:
    """The rows of an instruction set: the baseline's where there are none. Those of the nearest
    thread count, where this one was not measured on it."""
    found = {c: rows for (name, c), rows in table().items() if name == isa}
    if not found:
        found = {c: rows for (name, c), rows in table().items() if name == ISAS[0]}
    return found[min(found, key=lambda c: abs(c - count))]


@lru_cache
def table() -> dict[tuple[str, int], dict[tuple[str, str], list[Measured]]]:
    """All that was measured, by instruction set and threads, then by op and precision."""
    return read(PATH)


def read(path: Path) -> dict[tuple[str, int], dict[tuple[str, str], list[Measured]]]:
    """A table of bench.table's."""
    found: dict[tuple[str, int], dict[tuple[str, str], list[Measured]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            pixels = int(row["pixels"])
            case = Case(
                row["op"], int(row["window"]), int(row["stride"]), int(row["inputs"]),
                int(row["outputs"]), pixels, pixels, int(row["batch"]),
            )  # fmt: skip
            seconds = {k: 1e-6 * float(row[k]) for k in KERNELS if row.get(k)}
            part = found.setdefault((row["isa"], int(row["threads"])), defaultdict(list))
            part[row["op"], row["precision"]].append(Measured(case, seconds))
    return found
