"""Operands: registers, special registers, numbers, variables, addresses."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.program import Program
from tests.emulator.ptx.types import TYPES, UNSIGNED, Array, Type, decode

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine

Reader = Callable[["Machine"], Array]
_INTEGER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)U?")
_ADDRESS = re.compile(r"\[\s*(%?[\w$'.]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def constant(text: str, kind: Type) -> Array | None:
    """A literal as bits of the type's width, None where it is no literal."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        number: int | float = struct.unpack("<f", struct.pack("<I", int(text[2:], 16)))[0]
    elif re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        number = struct.unpack("<d", struct.pack("<Q", int(text[2:], 16)))[0]
    elif _INTEGER.fullmatch(text):
        bits = int(text.rstrip("U"), 0) % (1 << 8 * kind.size)
        return np.asarray(UNSIGNED[kind.size](bits))
    else:
        return None
    width = {4: np.float32, 8: np.float64}[kind.size]
    return np.asarray(np.asarray(width(number)).view(UNSIGNED[kind.size]))


def bits(program: Program, operand: str, kind: Type) -> Reader:
    """Reads an operand as bits of the type's width, one a lane (a literal: one for all)."""
    if operand in program.registers:
        declared = TYPES[program.registers[operand]]
        if declared.size == kind.size:
            return lambda m: m.registers[operand]
        return lambda m: m.registers[operand].astype(UNSIGNED[kind.size])
    literal = constant(operand, kind) if kind.name != "pred" else _truth(operand)
    if literal is not None:
        return lambda m: literal
    if operand in program.variables or re.match(r"%[a-z]", operand):
        return lambda m: m.special(operand).astype(UNSIGNED[kind.size])
    raise PtxError(f"an operand is not understood: {operand}")


def _truth(operand: str) -> Array | None:
    return np.asarray(bool(int(operand, 0))) if _INTEGER.fullmatch(operand) else None


def value(program: Program, operand: str, kind: Type) -> Reader:
    """Reads an operand as numbers. A leading ! negates a predicate."""
    if operand.startswith("!"):
        positive = bits(program, operand[1:], kind)
        return lambda m: ~positive(m)
    read = bits(program, operand, kind)
    return lambda m: decode(read(m), kind)


def address(program: Program, operand: str, width: int) -> Reader:
    """Reads [base + offset] as int64 addresses; `width`: the base's bytes, 4 in shared memory."""
    match = _ADDRESS.fullmatch(operand if operand.startswith("[") else f"[{operand}]")
    if not match:
        raise PtxError(f"an address is not understood: {operand}")
    declared = TYPES[program.registers.get(match[1], f"b{8 * width}")]
    base, offset = bits(program, match[1], declared), int(match[2] or "0", 0)
    return lambda m: m.lanes_of(base(m)).astype(np.int64) + offset
