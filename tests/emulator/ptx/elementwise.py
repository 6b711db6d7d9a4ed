"""Instructions whose lanes do not meet: sources, a function, a destination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tests.emulator.ptx import operands
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.types import TYPES, Array, Type, encode

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step


def check(ins: Instruction, allowed: set[str]) -> None:
    """Raises PtxError on a modifier that is not known: it would change the meaning."""
    unknown = [p for p in ins.parts[1:] if p not in allowed and p not in TYPES]
    if unknown:
        raise PtxError(f"a modifier is not known: .{unknown[0]} in {ins.text}")


def elementwise(
    program: Program,
    ins: Instruction,
    kind: Type,
    sources: Sequence[Type],
    function: Callable[..., Array],
) -> Step:
    """operands[0] = function(operands[1:]), numbers of `sources`, a number of `kind`."""
    if len(ins.operands) != 1 + len(sources):
        raise PtxError(f"{1 + len(sources)} operands are expected: {ins.text}")
    destination = ins.operands[0]
    readers = [
        operands.value(program, operand, source)
        for operand, source in zip(ins.operands[1:], sources, strict=True)
    ]

    def step(m: Machine, active: Array) -> None:
        m.put(destination, encode(function(*(read(m) for read in readers)), kind), active)

    return step
