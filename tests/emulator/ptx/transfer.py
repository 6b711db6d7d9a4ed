"""ld, st, atom, red, cvta: between registers and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.emulator.ptx import operands
from tests.emulator.ptx.elementwise import check, elementwise
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.memory import GLOBAL, LOCAL, SHARED, Access, Space
from tests.emulator.ptx.program import Instruction, Program, members
from tests.emulator.ptx.types import SIGNED, TYPES, UNSIGNED, Array, decode, encode

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step

SPACES = ("global", "shared", "local", "param", "const")
# Hints and orders that change no result where threads run in lock step.
_HINTS = {
    *SPACES, "shared__cta", "to", "volatile", "relaxed", "acquire", "release", "acq_rel", "weak",
    "cta", "gpu", "sys", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "v2", "v4", "v8",
    "L1__evict_last", "L1__evict_first", "L1__no_allocate", "L2__64B", "L2__128B", "L2__256B",
}  # fmt: skip
_VECTOR = {"v2": 2, "v4": 4, "v8": 8}


def space_of(ins: Instruction) -> str:
    return next((s for s in SPACES if ins.has(s) or ins.has(f"{s}__cta")), "generic")


def reach(
    m: Machine, space: str, addresses: Array, lanes: Array, size: int, text: str
) -> tuple[Space, Access]:
    """The checked access of `lanes` at `addresses`, and the memory that it goes to."""
    if space in ("global", "const"):
        array, offsets = m.arrays.offsets(addresses, size, text)
        return m.memory, Access(lanes + m.first, offsets, size, text, array)
    if space == "generic":
        space, base = next(
            (found for found in (("global", 0), ("local", LOCAL), ("shared", SHARED))
             if int(addresses[0]) >= (found[1] or GLOBAL)), ("nowhere", 0),
        )  # fmt: skip
        if space == "nowhere":
            raise PtxError(f"out of bounds: nothing is at {int(addresses[0]):#x}: {text}")
        return reach(m, space, addresses - base, lanes, size, text)
    shared = space == "shared"
    limit, room = (m.shared_size, m.room) if shared else (m.local_size, m.local_size)
    bad = (addresses < 0) | (addresses + size > limit)
    if bad.any():
        raise PtxError(
            f"out of bounds: {size} bytes at byte {int(addresses[bad][0])} of {limit} in {space} "
            f"memory: {text}"
        )
    begins = (lanes // m.per_block if shared else lanes) * room
    return (m.shared if shared else m.local), Access(lanes, begins + addresses, size, text)


def compile_ld(program: Program, ins: Instruction) -> Step:
    check(ins, _HINTS)
    kind, space = TYPES[ins.parts[-1]], space_of(ins)
    names = members(ins.operands[0])
    if space == "param":
        return _ld_param(ins, names)
    address = operands.address(program, ins.operands[1], 8)
    whole = kind.size * len(names)

    def step(m: Machine, active: Array) -> None:
        lanes = np.nonzero(active)[0]
        where, access = reach(m, space, address(m)[lanes], lanes, whole, ins.text)
        values = where.load(access, kind.size, m.stamps[lanes])
        if where is m.memory:
            m.count(m.stats.loaded, access)
        for i, name in enumerate(names):
            column = values[:, i].view(SIGNED[kind.size]) if kind.is_signed else values[:, i]
            m.put_at(name, column, lanes)

    return step


def _ld_param(ins: Instruction, names: list[str]) -> Step:
    size = TYPES[ins.parts[-1]].size
    name, _, offset = ins.operands[1].strip("[] ").partition("+")

    def step(m: Machine, active: Array) -> None:
        data = m.parameters[name.strip()][int(offset or "0", 0) :]
        if len(data) < size * len(names):
            raise PtxError(f"out of bounds: the parameter ends before: {ins.text}")
        words = np.frombuffer(data[: size * len(names)], UNSIGNED[size])
        for register, word in zip(names, words, strict=True):
            m.put(register, np.asarray(word), active)

    return step


def compile_st(program: Program, ins: Instruction) -> Step:
    check(ins, _HINTS)
    kind, space = TYPES[f"b{8 * TYPES[ins.parts[-1]].size}"], space_of(ins)
    address = operands.address(program, ins.operands[0], 8)
    readers = [operands.bits(program, o, kind) for o in members(ins.operands[1])]

    def step(m: Machine, active: Array) -> None:
        lanes = np.nonzero(active)[0]
        size = kind.size * len(readers)
        where, access = reach(m, space, address(m)[lanes], lanes, size, ins.text)
        values = np.stack([m.lanes_of(read(m))[lanes] for read in readers], 1)
        where.store(access, values, m.stamps[lanes])
        if where is m.memory:
            m.count(m.stats.stored, access)

    return step


_UPDATES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "min": min, "max": max, "exch": lambda a, b: b,
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
}  # fmt: skip


def compile_atom(program: Program, ins: Instruction) -> Step:
    """atom and red, one lane after the other."""
    check(ins, {*_HINTS, *_UPDATES, "cas"} - {"v2", "v4", "v8"})
    kind, space = TYPES[ins.parts[-1]], space_of(ins)
    gives = ins.parts[0] == "atom"
    rest = ins.operands[1:] if gives else ins.operands
    address = operands.address(program, rest[0], 8)
    sources = [operands.value(program, o, kind) for o in rest[1:]]
    name = next(p for p in ins.parts if p in _UPDATES or p == "cas")

    def step(m: Machine, active: Array) -> None:
        lanes = np.nonzero(active)[0]
        where, access = reach(m, space, address(m)[lanes], lanes, kind.size, ins.text)
        where.update(access, m.stamps[lanes])
        cells = where.rows(kind.size, 1)[:, 0]
        terms = [m.lanes_of(source(m))[lanes] for source in sources]
        before = np.zeros(len(lanes), UNSIGNED[kind.size])
        for i, cell in enumerate(access.offsets // kind.size):
            before[i] = cells[cell]
            old = decode(cells[cell : cell + 1], kind)[0]
            if name == "cas":
                new = terms[1][i] if old == terms[0][i] else old
            else:
                new = _UPDATES[name](old, terms[0][i])
            cells[cell] = encode(np.array([new], kind.number), kind)[0]
        if gives:
            m.put_at(ins.operands[0], before, lanes)

    return step


def compile_cvta(program: Program, ins: Instruction) -> Step:
    """Generic addresses: shared and local memory are reached through windows."""
    check(ins, _HINTS)
    window = {"shared": SHARED, "local": LOCAL}.get(space_of(ins), 0)
    shift = np.uint64((-window if ins.has("to") else window) % (1 << 64))
    kind = TYPES["u64"]
    return elementwise(program, ins, kind, [kind], lambda a: a + shift)
