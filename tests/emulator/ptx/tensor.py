"""Tensor cores: ldmatrix, stmatrix, mma.sync.

Products are summed in float64 and rounded to the accumulator once. The hardware's sums round in an
order that is not specified: compare results with a tolerance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.ptx import operands
from tests.emulator.ptx.elementwise import check
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.program import Instruction, Program, members
from tests.emulator.ptx.transfer import reach
from tests.emulator.ptx.types import TYPES, Array, decode, pack, unpack
from tests.emulator.ptx.warp import by_warp

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step

_LANE = np.arange(32)
_GROUP, _PLACE = _LANE >> 2, _LANE & 3  # a fragment's row, and its place in the row


def whole_warps(m: Machine, active: Array, text: str) -> Array:
    """(warps,): those that run. All their lanes must."""
    running = by_warp(m, active)
    if (running.any(1) != running.all(1)).any():
        raise PtxError(f"a part of a warp runs what a whole one must: {text}")
    return np.asarray(running.all(1))


def _rows_of(m: Machine, addresses: Array, matrix: int) -> Array:
    """(lanes,): the address of each lane's row of an 8x8 matrix, as given by lanes 8 * matrix.."""
    return by_warp(m, addresses)[:, 8 * matrix + _GROUP].ravel()


def _pieces(m: Machine, addresses: Array, matrix: int, transposed: bool) -> list[tuple[Array, int]]:
    """What a lane holds of a matrix: (addresses, bytes) of one piece, or of two halves."""
    if not transposed:
        return [(_rows_of(m, addresses, matrix) + 4 * m.tile(_PLACE), 4)]
    rows = by_warp(m, addresses)
    return [
        (rows[:, 8 * matrix + 2 * _PLACE + half].ravel() + 2 * m.tile(_GROUP), 2)
        for half in range(2)
    ]


def compile_ldmatrix(program: Program, ins: Instruction) -> Step:
    """ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16 {...}, [row]"""
    check(ins, {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared__cta"})
    names = members(ins.operands[0])
    address = operands.address(program, ins.operands[1], 4)

    def step(m: Machine, active: Array) -> None:
        whole_warps(m, active, ins.text)
        lanes, rows = np.nonzero(active)[0], address(m)
        _check_rows(rows, active, len(names), ins.text)
        for matrix, name in enumerate(names):
            word = np.zeros(len(lanes), np.uint32)
            for half, (at, size) in enumerate(_pieces(m, rows, matrix, ins.has("trans"))):
                where, access = reach(m, "shared", at[lanes], lanes, size, ins.text)
                part = where.load(access, size, m.stamps[lanes])[:, 0]
                word |= part.astype(np.uint32) << np.uint32(16 * half)
            m.put_at(name, word, lanes)

    return step


def _check_rows(rows: Array, active: Array, matrices: int, text: str) -> None:
    gives = active & (np.arange(len(active)) % 32 < 8 * matrices)
    if (rows[gives] % 16).any():
        raise PtxError(f"misaligned: a row of 16 bytes: {text}")


def compile_stmatrix(program: Program, ins: Instruction) -> Step:
    """stmatrix.sync.aligned.m8n8.x4[.trans].shared.b16 [row], {...}"""
    check(ins, {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared__cta"})
    readers = [operands.bits(program, o, TYPES["u32"]) for o in members(ins.operands[1])]
    address = operands.address(program, ins.operands[0], 4)

    def step(m: Machine, active: Array) -> None:
        whole_warps(m, active, ins.text)
        lanes, rows = np.nonzero(active)[0], address(m)
        _check_rows(rows, active, len(readers), ins.text)
        for matrix, read in enumerate(readers):
            word = m.lanes_of(read(m))[lanes]
            for half, (at, size) in enumerate(_pieces(m, rows, matrix, ins.has("trans"))):
                where, access = reach(m, "shared", at[lanes], lanes, size, ins.text)
                part = word if size == 4 else (word >> np.uint32(16 * half)).astype(np.uint16)
                where.store(access, part[:, None], m.stamps[lanes])

    return step


def _layout(shape: str, kind: str) -> tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]:
    """Where the elements of A's and of B's registers stand: (row, column), by element and lane."""
    depth = int(shape.split("k")[1])
    first, second = [], []
    if kind == "tf32":
        for i in range(depth // 2):
            first.append((_GROUP + 8 * (i & 1), _PLACE + 4 * (i >> 1)))
        for i in range(depth // 4):
            second.append((_PLACE + 4 * i, _GROUP))
        return first, second
    for i in range(depth // 4):
        for half in range(2):
            first.append((_GROUP + 8 * (i & 1), 2 * _PLACE + 8 * (i >> 1) + half))
    for i in range(depth // 8):
        for half in range(2):
            second.append((2 * _PLACE + 8 * i + half, _GROUP))
    return first, second


def compile_mma(program: Program, ins: Instruction) -> Step:
    """mma.sync.aligned.m16n8k*.row.col.d.a.b.c {d}, {a}, {b}, {c}"""
    shape, to, left = ins.parts[3], ins.parts[-4], ins.parts[-3]
    known = {"f16": ("m16n8k16", "m16n8k8"), "bf16": ("m16n8k16", "m16n8k8"),
             "tf32": ("m16n8k8", "m16n8k4")}  # fmt: skip
    right = (ins.parts[-2], ins.parts[-1], ins.parts[4:6]) == (left, to, ("row", "col"))
    if shape not in known.get(left, ()) or to not in ("f32", "f16") or not right:
        raise PtxError(f"a matrix product is not known: {ins.text}")
    check(ins, {"sync", "aligned", shape, "row", "col"})
    names = members(ins.operands[0])
    word = TYPES["u32"]
    a, b, c = (
        [operands.bits(program, o, word) for o in members(ins.operands[i])] for i in (1, 2, 3)
    )
    depth, (in_a, in_b) = int(shape.split("k")[1]), _layout(shape, left)

    def fragment(m: Machine, readers: list[operands.Reader], warps: Array) -> list[Array]:
        """The registers' elements, (warps, 32) each."""
        found: list[Array] = []
        for read in readers:
            bits = by_warp(m, read(m))[warps]
            if left == "tf32":
                found.append(decode(bits & np.uint32(0xFFFFE000), TYPES["f32"]))
            else:
                found.extend(unpack(bits, TYPES[f"{left}x2"]))
        return found

    def step(m: Machine, active: Array) -> None:
        warps = whole_warps(m, active, ins.text)
        number = int(warps.sum())
        rows, columns = np.zeros((number, 16, depth)), np.zeros((number, depth, 8))
        for part, (row, column) in zip(fragment(m, a, warps), in_a, strict=True):
            rows[:, row, column] = part
        for part, (row, column) in zip(fragment(m, b, warps), in_b, strict=True):
            columns[:, row, column] = part
        product, lanes = rows @ columns, np.nonzero(active)[0]
        _accumulate(m, product, names, [by_warp(m, r(m))[warps] for r in c], to, lanes)

    return step


def _accumulate(
    m: Machine, product: Array, names: list[str], added: list[Array], to: str, lanes: Array
) -> None:
    """d = product + c, in the accumulator's type."""
    for i, (name, bits) in enumerate(zip(names, added, strict=True)):
        if to == "f32":
            part = product[:, _GROUP + 8 * (i >> 1), 2 * _PLACE + (i & 1)]
            total = (part + bits.view(np.float32)).astype(np.float32)
            m.put_at(name, total.ravel().view(np.uint32), lanes)
            continue
        halves = [
            (product[:, _GROUP + 8 * i, 2 * _PLACE + half] + c).astype(np.float16)
            for half, c in enumerate(unpack(bits, TYPES["f16x2"]))
        ]
        m.put_at(name, pack(halves[0], halves[1], TYPES["f16x2"]).ravel(), lanes)
