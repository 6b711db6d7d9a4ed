"""Arithmetic on integers: all wraps around, as registers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.emulator.ptx.elementwise import check, elementwise
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.machine import Step
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.types import PACKED, SIGNED, TYPES, UNSIGNED, Array, Type, pairwise

INTEGERS = ("add", "sub", "mul", "mad", "div", "rem", "neg", "abs", "min", "max", "sad",
            "popc", "clz", "bfind", "brev")  # fmt: skip


def compile_integer(program: Program, ins: Instruction) -> Step:
    name, kind = ins.parts[0], TYPES[ins.parts[-1]]
    check(ins, {"lo", "hi", "wide", "shiftamt"})
    if name in ("mul", "mad"):
        return _product(program, ins, kind)
    if name in ("popc", "clz", "bfind"):
        return elementwise(program, ins, TYPES["u32"], [kind], _counting(ins, kind))
    if name == "sad":
        return elementwise(program, ins, kind, [kind] * 3, lambda a, b, c: c + np.abs(a - b))
    functions: dict[str, Callable[..., Any]] = {
        "add": np.add, "sub": np.subtract, "div": _divide, "rem": _remainder,
        "neg": np.negative, "abs": np.abs, "min": np.minimum, "max": np.maximum, "brev": _reversed,
    }  # fmt: skip
    count = 1 if name in ("neg", "abs", "brev") else 2
    if kind.name in PACKED:
        word = TYPES["b32"]
        return elementwise(program, ins, word, [word] * count, pairwise(functions[name], kind))
    return elementwise(program, ins, kind, [kind] * count, functions[name])


def _product(program: Program, ins: Instruction, kind: Type) -> Step:
    added = ins.parts[0] == "mad"
    if ins.has("wide"):
        wide = TYPES[f"{kind.name[0]}{16 * kind.size}"]

        def widened(a: Array, b: Array, c: Array | int = 0) -> Array:
            return np.asarray(a.astype(wide.number) * b.astype(wide.number) + c)

        return elementwise(
            program, ins, wide, [kind, kind, *([wide] if added else [])],
            widened if added else lambda a, b: widened(a, b),
        )  # fmt: skip
    multiply = high_product if ins.has("hi") else np.multiply
    if not (ins.has("hi") or ins.has("lo")):
        raise PtxError(f"which half of the product: {ins.text}")
    if added:
        return elementwise(program, ins, kind, [kind] * 3, lambda a, b, c: multiply(a, b) + c)
    return elementwise(program, ins, kind, [kind] * 2, multiply)


def high_product(a: Array, b: Array) -> Array:
    """The upper half of a product, from 32-bit parts where 64 bits do not hold it."""
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    size = a.dtype.itemsize
    if size < 8:
        kinds = SIGNED if a.dtype.kind == "i" else UNSIGNED
        whole = a.astype(kinds[2 * size]) * b.astype(kinds[2 * size])
        return np.asarray((whole >> (8 * size)).astype(a.dtype))
    x, y, shift, low = a.view(np.uint64), b.view(np.uint64), np.uint64(32), np.uint64(0xFFFFFFFF)
    x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
    middle = x1 * y0 + ((x0 * y0) >> shift)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> shift) + (other >> shift)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return np.asarray(high.view(a.dtype))


def _divide(a: Array, b: Array) -> Array:
    """Towards zero. A division by zero, undefined in PTX, gives all ones."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    floor = a // safe
    if a.dtype.kind == "i":
        floor = floor + ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), floor).astype(a.dtype)


def _remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, a, a - _divide(a, b) * b).astype(a.dtype)


def _bits(a: Array) -> Array:
    """(..., width) bits, the lowest first."""
    unsigned = np.atleast_1d(a).view(UNSIGNED[a.dtype.itemsize])
    shifts = np.arange(8 * a.dtype.itemsize).astype(unsigned.dtype)
    return np.asarray((unsigned[..., None] >> shifts) & unsigned.dtype.type(1)).astype(np.bool_)


def _counting(ins: Instruction, kind: Type) -> Callable[[Array], Array]:
    def highest(a: Array) -> Array:
        """The position of the highest set bit, -1 without one."""
        found = _bits(a)
        last = 8 * kind.size - 1 - found[..., ::-1].argmax(-1)
        return np.where(found.any(-1), last, -1)

    def count(a: Array) -> Array:
        if ins.parts[0] == "popc":
            return np.asarray(_bits(a).sum(-1).astype(np.uint32))
        if ins.parts[0] == "clz":
            return (8 * kind.size - 1 - highest(a)).astype(np.uint32)
        of = np.where(a < 0, ~a, a) if kind.is_signed else a
        position = highest(of)
        if ins.has("shiftamt"):
            position = np.where(position < 0, -1, 8 * kind.size - 1 - position)
        return position.astype(np.int32).view(np.uint32)

    return count


def _reversed(a: Array) -> Array:
    packed = np.packbits(_bits(a)[..., ::-1], axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(a.dtype)[..., 0]
