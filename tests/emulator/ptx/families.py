"""Which function compiles which instruction. What is not here raises."""

from __future__ import annotations

from collections.abc import Callable

from tests.emulator.ptx import convert, copies, floats, integers, logic, tensor, transfer, warp
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.machine import Step
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.types import TYPES

_FAMILIES: dict[str, Callable[[Program, Instruction], Step]] = {
    **dict.fromkeys(("and", "or", "xor", "not", "cnot", "shl", "shr", "shf", "lop3", "prmt",
                     "bfe", "bfi"), logic.compile_bits),
    **dict.fromkeys(("atom", "red"), transfer.compile_atom),
    **dict.fromkeys(("bar", "barrier"), warp.compile_barrier),
    **dict.fromkeys(("ret", "exit"), warp.compile_end),
    **dict.fromkeys(("fence", "membar", "prefetch", "nanosleep"), warp.compile_nothing),
    "activemask": warp.compile_activemask,
    "bra": warp.compile_branch,
    "cp": copies.compile_cp,
    "cvt": convert.compile_cvt,
    "cvta": transfer.compile_cvta,
    "ld": transfer.compile_ld,
    "ldmatrix": tensor.compile_ldmatrix,
    "mma": tensor.compile_mma,
    "mov": logic.compile_mov,
    "redux": warp.compile_redux,
    "selp": logic.compile_selp,
    "set": logic.compile_set,
    "setp": logic.compile_setp,
    "shfl": warp.compile_shfl,
    "st": transfer.compile_st,
    "stmatrix": tensor.compile_stmatrix,
    "trap": warp.compile_trap,
    "vote": warp.compile_vote,
}  # fmt: skip


def compile_instruction(program: Program, ins: Instruction) -> Step:
    name, kind = ins.parts[0], TYPES.get(ins.parts[-1])
    if name in _FAMILIES:
        return _FAMILIES[name](program, ins)
    if kind and kind.is_float and name in floats.FLOATS:
        return floats.compile_float(program, ins)
    if kind and not kind.is_float and name in integers.INTEGERS:
        return integers.compile_integer(program, ins)
    raise PtxError(f"an instruction is not known: {ins.text}")
