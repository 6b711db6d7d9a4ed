"""cp.async: copies from global to shared memory that arrive where their group is waited for.

Until then the destination holds 0xff (NaN), and whoever touches it races with the copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.ptx import operands
from tests.emulator.ptx.elementwise import check
from tests.emulator.ptx.memory import Access
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.transfer import reach
from tests.emulator.ptx.types import TYPES, Array

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step


@dataclass
class Copy:
    """In flight: `data` (lanes, bytes) on its way to `access`, each lane's in its `group`."""

    access: Access
    data: Array
    group: Array


def compile_cp(program: Program, ins: Instruction) -> Step:
    check(ins, {"async", "commit_group", "wait_group", "wait_all", "ca", "cg", "shared",
                "shared__cta", "global", "L2__64B", "L2__128B", "L2__256B"})  # fmt: skip
    if ins.has("commit_group"):
        return _commit
    if ins.has("wait_all"):
        return lambda m, active: _arrive(m, active, 0, committed=False)
    if ins.has("wait_group"):
        left = int(ins.operands[0], 0)
        return lambda m, active: _arrive(m, active, left)
    return _start(program, ins)


def _start(program: Program, ins: Instruction) -> Step:
    """cp.async.ca.shared.global [to], [from], bytes[, bytes from memory: the rest is zero]"""
    to = operands.address(program, ins.operands[0], 4)
    source = operands.address(program, ins.operands[1], 8)
    size = int(ins.operands[2], 0)
    given = operands.bits(program, ins.operands[3] if len(ins.operands) > 3 else str(size),
                          TYPES["u32"])  # fmt: skip

    def step(m: Machine, active: Array) -> None:
        lanes = np.nonzero(active)[0]
        taken = m.lanes_of(given(m))[lanes].astype(np.int64)
        data = np.zeros((len(lanes), size), np.uint8)
        for n in np.unique(taken[taken > 0]):  # mostly all of it
            some = taken == n
            data[some, :n] = _bytes(m, source(m)[lanes[some]], lanes[some], int(n), ins.text)
        where, access = reach(m, "shared", to(m)[lanes], lanes, size, ins.text)
        where.claim(access, m.stamps[lanes])
        m.copies.append(Copy(access, data, m.groups[lanes]))

    return step


def _bytes(m: Machine, addresses: Array, lanes: Array, size: int, text: str) -> Array:
    where, access = reach(m, "global", addresses, lanes, size, text)
    m.count(m.stats.loaded, access)
    return np.asarray(where.load(access, 1, m.stamps[lanes]))


def _commit(m: Machine, active: Array) -> None:
    m.groups[active] += 1


def _arrive(m: Machine, active: Array, left: int, committed: bool = True) -> None:
    """All groups of the active lanes but the last `left` are there."""
    limit = m.groups - left if committed else m.groups + 1
    in_flight = []
    for copy in m.copies:
        lanes = copy.access.lanes
        here = active[lanes] & (copy.group < limit[lanes])
        if here.any():
            access = copy.access
            there = Access(lanes[here], access.offsets[here], access.size, access.text)
            m.shared.arrive(there, copy.data[here], m.stamps[there.lanes])
        if not here.all():
            rest = Access(lanes[~here], copy.access.offsets[~here], copy.access.size,
                          copy.access.text)  # fmt: skip
            in_flight.append(Copy(rest, copy.data[~here], copy.group[~here]))
    m.copies = in_flight
