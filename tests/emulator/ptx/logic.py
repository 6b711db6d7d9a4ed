"""Bits, comparisons and selections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.ptx import operands, rounding
from tests.emulator.ptx.elementwise import check, elementwise
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.program import Instruction, Program, members
from tests.emulator.ptx.types import PACKED, TYPES, UNSIGNED, Array, Type, encode, unpack

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step

_ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_BOTH = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def compile_bits(program: Program, ins: Instruction) -> Step:
    """and, or, xor, not, cnot, shl, shr, shf, lop3, prmt, bfe, bfi."""
    name, kind = ins.parts[0], TYPES[ins.parts[-1]]
    check(ins, {"l", "r", "wrap", "clamp"})
    if name in ("and", "or", "xor"):
        function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name]
        return elementwise(program, ins, kind, [kind] * 2, function)
    if name == "not":
        return elementwise(program, ins, kind, [kind], np.invert)
    if name == "cnot":
        return elementwise(program, ins, kind, [kind], lambda a: (a == 0).astype(a.dtype))
    word = TYPES["u32"]
    if name in ("shl", "shr"):
        return elementwise(program, ins, kind, [kind, word], _left if name == "shl" else _right)
    if name == "shf":
        return elementwise(program, ins, kind, [word] * 3, _funnel(ins))
    if name == "lop3":
        return elementwise(program, ins, kind, [word] * 4, _lookup)
    if name == "prmt":
        return elementwise(program, ins, kind, [word] * 3, _permute)
    if name == "bfe":
        return elementwise(program, ins, kind, [kind, word, word], _extract)
    return elementwise(program, ins, kind, [kind, kind, word, word], _insert)


def _left(a: Array, by: Array) -> Array:
    width = 8 * a.dtype.itemsize
    shifted = np.asarray(a << np.minimum(by, width - 1).astype(a.dtype))
    return np.where(by >= width, a.dtype.type(0), shifted)


def _right(a: Array, by: Array) -> Array:
    """Shifts by the width or more leave the sign, or nothing."""
    width = 8 * a.dtype.itemsize
    shifted = np.asarray(a >> np.minimum(by, width - 1).astype(a.dtype))
    return shifted if a.dtype.kind == "i" else np.where(by >= width, a.dtype.type(0), shifted)


def _funnel(ins: Instruction) -> Callable[[Array, Array, Array], Array]:
    def shift(low: Array, high: Array, by: Array) -> Array:
        by = (by & np.uint32(31)) if ins.has("wrap") else np.minimum(by, np.uint32(32))
        whole = (high.astype(np.uint64) << np.uint64(32)) | low
        by = by.astype(np.uint64)
        if ins.has("l"):
            return (whole >> (np.uint64(32) - by)).astype(np.uint32)
        return (whole >> by).astype(np.uint32)

    return shift


def _lookup(a: Array, b: Array, c: Array, table: Array) -> Array:
    """lop3: each bit by a table of eight."""
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
    for row in range(8):
        if int(table) >> row & 1:
            terms = (v if row & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1)))
            first, second, third = terms
            result = result | (first & second & third)
    return result


def _permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes of eight; a selector's highest bit asks for the byte's sign alone."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint32)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> ((choice & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint8)
        sign = np.where(byte >> 7 != 0, np.uint8(255), np.uint8(0))
        result = result | (np.where(choice > 7, sign, byte).astype(np.uint32) << np.uint32(8 * i))
    return result


def _extract(a: Array, position: Array, length: Array) -> Array:
    width = 8 * a.dtype.itemsize
    position, length = position & np.uint32(255), length & np.uint32(255)
    unsigned = UNSIGNED[a.dtype.itemsize]
    field = _right(a, position).view(unsigned)
    keep = np.where(
        length >= width, ~unsigned(0), _left(unsigned(1) + 0 * field, length) - unsigned(1)
    )
    if a.dtype.kind == "u":
        return np.asarray(field & keep)
    top = np.minimum(position + length - np.uint32(1), np.uint32(width - 1))
    negative = (_right(a.view(unsigned), top) & unsigned(1)).astype(np.bool_) & (length > 0)
    extended = np.where(negative, field | ~keep, field & keep).astype(unsigned)
    return np.asarray(extended.view(a.dtype))


def _insert(field: Array, into: Array, position: Array, length: Array) -> Array:
    position, length = position & np.uint32(255), length & np.uint32(255)
    one = into.dtype.type(1) + into.dtype.type(0) * into
    full = 8 * into.dtype.itemsize
    keep = np.where(length >= full, ~into.dtype.type(0), _left(one, length) - into.dtype.type(1))
    mask = _left(keep, position)
    return np.asarray((_left(field + into.dtype.type(0) * into, position) & mask) | (into & ~mask))


def compare(name: str, kind: Type) -> Callable[[Array, Array], Array]:
    """A comparison by its PTX name. With a NaN it is false, and true with a trailing u."""
    if name in _ORDERED and not kind.is_float:
        return _ORDERED[name]
    if name in _UNSIGNED:
        return _ORDERED[_UNSIGNED[name]]
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    unordered = name.endswith("u") and name[:-1] in _ORDERED
    if not unordered and name not in _ORDERED:
        raise PtxError(f"a comparison is not known: {name}")
    plain = _ORDERED[name[:-1] if unordered else name]

    def compared(a: Array, b: Array) -> Array:
        no_number = np.isnan(a) | np.isnan(b)
        return plain(a, b) | no_number if unordered else plain(a, b) & ~no_number

    return compared


def compile_setp(program: Program, ins: Instruction) -> Step:
    """setp.compare[.and|or|xor][.ftz].type p[|q], a, b[, [!]c]"""
    check(ins, {ins.parts[1], *_BOTH, "ftz"})
    kind = TYPES[ins.parts[-1]]
    join = next((_BOTH[p] for p in ins.parts[2:-1] if p in _BOTH), None)
    targets = ins.operands[0].split("|")
    with_third = operands.value(program, ins.operands[3], TYPES["pred"]) if join else None
    if kind.name in PACKED:
        return _packed_setp(program, ins, kind)
    test = compare(ins.parts[1], kind)
    a, b = (operands.value(program, o, kind) for o in ins.operands[1:3])
    ftz = rounding.flushed if ins.has("ftz") else np.asarray

    def step(m: Machine, active: Array) -> None:
        truth = test(ftz(a(m)), ftz(b(m)))
        results = [truth, ~truth]
        if join and with_third:
            results = [join(r, with_third(m)) for r in results]
        for target, result in zip(targets, results, strict=False):
            m.put(target.strip(), result, active)

    return step


def _packed_setp(program: Program, ins: Instruction, kind: Type) -> Step:
    """One predicate a half."""
    low, high = (target.strip() for target in ins.operands[0].split("|"))
    if len(ins.parts) != 3:
        raise PtxError(f"a modifier is not known: {ins.text}")
    test = compare(ins.parts[1], TYPES[PACKED[kind.name]])
    a, b = (operands.bits(program, o, kind) for o in ins.operands[1:3])

    def step(m: Machine, active: Array) -> None:
        (a0, a1), (b0, b1) = unpack(a(m), kind), unpack(b(m), kind)
        m.put(low, test(a0, b0), active)
        m.put(high, test(a1, b1), active)

    return step


def compile_set(program: Program, ins: Instruction) -> Step:
    """set.compare.to.from d, a, b: 1.0, or all ones for integers."""
    check(ins, {ins.parts[1], "ftz"})
    to, kind = TYPES[ins.parts[-2]], TYPES[ins.parts[-1]]
    if kind.name in PACKED or to.name == "bf16":
        raise PtxError(f"a type is not known here: {ins.text}")
    test = compare(ins.parts[1], kind)
    yes = (
        to.number(1) if to.is_float else UNSIGNED[to.size](-1 % (1 << 8 * to.size)).view(to.number)
    )
    return elementwise(
        program, ins, to, [kind] * 2, lambda a, b: np.where(test(a, b), yes, to.number(0))
    )


def compile_selp(program: Program, ins: Instruction) -> Step:
    check(ins, set())
    kind = TYPES[f"b{8 * TYPES[ins.parts[-1]].size}"]

    def choose(a: Array, b: Array, first: Array) -> Array:
        return np.where(first, a, b)

    return elementwise(program, ins, kind, [kind, kind, TYPES["pred"]], choose)


def compile_mov(program: Program, ins: Instruction) -> Step:
    """Between registers, or packing {a, b} and unpacking it."""
    check(ins, set())
    kind = TYPES[ins.parts[-1]]
    if kind.name == "pred":
        return elementwise(program, ins, kind, [kind], np.asarray)
    kind = TYPES[f"b{8 * kind.size}"]
    to, source = (members(o) for o in ins.operands)
    if len(to) == 1 and len(source) == 1:
        return elementwise(program, ins, kind, [kind], np.asarray)
    part = TYPES[f"b{8 * kind.size // max(len(to), len(source))}"]
    readers = [operands.bits(program, o, part if len(source) > 1 else kind) for o in source]

    def step(m: Machine, active: Array) -> None:
        words = [read(m) for read in readers]
        if len(words) > 1:
            whole = kind.number(0)
            for i, word in enumerate(words):
                whole = whole | (word.astype(kind.number) << kind.number(8 * part.size * i))
            m.put(to[0], np.asarray(whole), active)
            return
        for i, name in enumerate(to):
            shifted = words[0] >> kind.number(8 * part.size * i)
            m.put(name, encode(shifted.astype(part.number), part), active)

    return step
