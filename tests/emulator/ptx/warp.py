"""What the threads of a warp do together: shuffles, votes, reductions; and barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.emulator.ptx import operands
from tests.emulator.ptx.elementwise import check
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.types import TYPES, Array, encode

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step


def by_warp(m: Machine, v: Array) -> Array:
    """(lanes,) to (warps, 32)."""
    if m.per_block % 32:
        raise PtxError(f"a block of {m.per_block} threads has a part of a warp")
    return m.lanes_of(v).reshape(-1, 32)


def _together(m: Machine, active: Array, mask: Array, text: str) -> Array:
    """(warps,) those that take part, after checking that all lanes of their mask do."""
    running, word = by_warp(m, active), by_warp(m, mask)
    named = (word[:, :, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    missing = (named.astype(np.bool_) & ~running[:, None, :]).any(2) & running
    if missing.any():
        raise PtxError(f"a warp's lanes are not all here: {text}")
    return np.asarray(running.any(1))


def compile_shfl(program: Program, ins: Instruction) -> Step:
    """shfl.sync.mode.b32 d[|p], a, b, c, membermask"""
    check(ins, {"sync", "up", "down", "bfly", "idx"})
    word = TYPES["u32"]
    a, b, c, mask = (operands.bits(program, o, word) for o in ins.operands[1:5])
    targets = [t.strip() for t in ins.operands[0].split("|")]
    mode = ins.parts[2]

    def step(m: Machine, active: Array) -> None:
        _together(m, active, mask(m), ins.text)
        values, by, bound = (by_warp(m, read(m)).astype(np.int64) for read in (a, b, c))
        lane = np.arange(32)
        by, clamp, segment = by & 31, bound & 31, bound >> 8 & 31
        most, least = (lane & segment) | (clamp & ~segment), lane & segment
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by,
                  "idx": least | (by & ~segment)}[mode]  # fmt: skip
        inside = source >= most if mode == "up" else source <= most
        source = np.where(inside, source, lane)
        running = by_warp(m, active)
        if (running & ~np.take_along_axis(running, source, 1)).any():
            raise PtxError(f"a shuffle reads a lane that does not take part: {ins.text}")
        m.put(targets[0], np.take_along_axis(values, source, 1).ravel().astype(np.uint32), active)
        if len(targets) > 1:
            m.put(targets[1], inside.ravel(), active)

    return step


def compile_vote(program: Program, ins: Instruction) -> Step:
    """vote.sync.mode.type d, p, membermask"""
    check(ins, {"sync", "all", "any", "uni", "ballot"})
    predicate = operands.value(program, ins.operands[1], TYPES["pred"])
    mask = operands.bits(program, ins.operands[2], TYPES["u32"])

    def step(m: Machine, active: Array) -> None:
        _together(m, active, mask(m), ins.text)
        running, truth = by_warp(m, active), by_warp(m, predicate(m))
        ballot = ((truth & running) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
        result = {
            "all": (truth | ~running).all(1), "any": (truth & running).any(1), "ballot": ballot,
            "uni": (truth | ~running).all(1) | ~(truth & running).any(1),
        }[ins.parts[2]]  # fmt: skip
        m.put(ins.operands[0], result.repeat(32), active)

    return step


_REDUCE: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "add": (np.add, lambda t: 0), "and": (np.bitwise_and, lambda t: -1 if t.kind == "i" else
    np.iinfo(t).max), "or": (np.bitwise_or, lambda t: 0), "xor": (np.bitwise_xor, lambda t: 0),
    "min": (np.minimum, lambda t: np.iinfo(t).max), "max": (np.maximum, lambda t: np.iinfo(t).min),
}  # fmt: skip


def compile_redux(program: Program, ins: Instruction) -> Step:
    """redux.sync.op.type d, a, membermask"""
    check(ins, {"sync", *_REDUCE})
    kind = TYPES[ins.parts[-1]]
    if kind.is_float:
        raise PtxError(f"a type is not known here: {ins.text}")
    source = operands.value(program, ins.operands[1], kind)
    mask = operands.bits(program, ins.operands[2], TYPES["u32"])
    join, neutral = _REDUCE[ins.parts[2]]

    def step(m: Machine, active: Array) -> None:
        _together(m, active, mask(m), ins.text)
        empty = np.asarray(neutral(np.dtype(kind.number)), kind.number)
        values = np.where(by_warp(m, active), by_warp(m, source(m)), empty)
        result = join.reduce(values, axis=1, dtype=kind.number)  # type: ignore[attr-defined]
        m.put(ins.operands[0], encode(result, kind).repeat(32), active)

    return step


def compile_activemask(program: Program, ins: Instruction) -> Step:
    def step(m: Machine, active: Array) -> None:
        word = (by_warp(m, active) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
        m.put(ins.operands[0], word.repeat(32), active)

    return step


def compile_barrier(program: Program, ins: Instruction) -> Step:
    """bar.sync, barrier.sync: all threads of a block; bar.warp.sync: of a warp."""
    check(ins, {"sync", "warp", "cta", "aligned"})
    if ins.has("warp"):
        mask = operands.bits(program, ins.operands[0], TYPES["u32"])

        def warp_step(m: Machine, active: Array) -> None:
            _together(m, active, mask(m), ins.text)
            m.stamps[active] += 1

        return warp_step
    if not ins.has("sync"):
        raise PtxError(f"an instruction is not known: {ins.text}")
    number = operands.bits(program, ins.operands[0], TYPES["u32"])
    count = operands.bits(program, ins.operands[1], TYPES["u32"]) if len(ins.operands) > 1 else None

    def step(m: Machine, active: Array) -> None:
        if count is not None and (count(m) != m.per_block).any():
            raise PtxError(f"a barrier for a part of a block is not known: {ins.text}")
        m.waits_at[active] = m.lanes_of(number(m))[active].astype(np.int64) + 16 * m.position

    return step


def compile_branch(program: Program, ins: Instruction) -> Step:
    check(ins, {"uni"})
    if ins.operands[0] not in program.labels:
        raise PtxError(f"a label is not known: {ins.text}")
    to = program.labels[ins.operands[0]]

    def step(m: Machine, active: Array) -> None:
        m.counter[active] = to

    return step


def compile_end(program: Program, ins: Instruction) -> Step:
    def step(m: Machine, active: Array) -> None:
        m.done |= active

    return step


def compile_trap(program: Program, ins: Instruction) -> Step:
    def step(m: Machine, active: Array) -> None:
        raise PtxError(f"the kernel stops itself: {ins.text}")

    return step


def compile_nothing(program: Program, ins: Instruction) -> Step:
    """Fences and hints: lanes run in lock step, and races are found by barriers alone."""
    return lambda m, active: None
