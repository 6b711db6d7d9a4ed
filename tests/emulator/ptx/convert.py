"""cvt: between types, rounding where the instruction says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.ptx import operands, rounding
from tests.emulator.ptx.elementwise import check, elementwise
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.types import PACKED, TYPES, Array, Type, pack

if TYPE_CHECKING:
    from tests.emulator.ptx.machine import Machine, Step

_WHOLE: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


def compile_cvt(program: Program, ins: Instruction) -> Step:
    check(ins, {*rounding.MODES, *_WHOLE, "rna", "ftz", "sat", "relu"})
    to, kind = TYPES[ins.parts[-2]], TYPES[ins.parts[-1]]
    function = conversion(ins, TYPES[PACKED.get(to.name, to.name)], kind)
    if to.name not in PACKED:
        return elementwise(program, ins, to, [kind], function)
    high, low = (operands.value(program, o, kind) for o in ins.operands[1:])

    def step(m: Machine, active: Array) -> None:
        m.put(ins.operands[0], pack(function(low(m)), function(high(m)), to), active)

    return step


def conversion(ins: Instruction, to: Type, kind: Type) -> Callable[[Array], Array]:
    """Numbers of `kind` to numbers of `to`."""
    mode = next((m for m in (*rounding.MODES, "rna") if ins.has(m)), "rn")
    whole = next((_WHOLE[p] for p in ins.parts if p in _WHOLE), None)
    if kind.is_float and to.is_float:
        return rounding.flushing(lambda v: _float_to_float(v, to, mode, whole, ins), ins.has("ftz"))
    if kind.is_float:
        if whole is None:
            raise PtxError(f"a conversion to an integer must say how it rounds: {ins.text}")
        ftz = rounding.flushed if ins.has("ftz") else np.asarray
        return lambda v: _float_to_integer(whole(ftz(v)), to)
    if to.is_float:
        return lambda v: _integer_to_float(v, to, mode)
    return lambda v: _saturated(v, to) if ins.has("sat") else v.astype(to.number)


def _float_to_float(
    v: Array, to: Type, mode: str, whole: Callable[[Array], Array] | None, ins: Instruction
) -> Array:
    v = np.asarray(v)
    if whole is not None:
        v = whole(v)
    if ins.has("sat") or ins.has("relu"):  # NaN becomes 0
        v = np.where(v > 0, v, v.dtype.type(0))
        v = np.where(v > 1, v.dtype.type(1), v) if ins.has("sat") else v
    widens = v.dtype.itemsize < np.dtype(to.number).itemsize and to.name not in ("bf16", "tf32")
    if widens or (v.dtype == to.number and to.name not in ("bf16", "tf32")):
        return np.asarray(v.astype(to.number))
    return rounding.narrow(v, to, mode)


def _float_to_integer(v: Array, to: Type) -> Array:
    """Clamped to the type's range; NaN gives 0."""
    limits = np.iinfo(to.number)
    wide = v.astype(np.float64)
    below, above = wide <= limits.min, wide >= limits.max
    inside = np.where(below | above | np.isnan(wide), 0.0, wide)
    result = inside.astype(to.number)
    result = np.where(below, to.number(limits.min), np.where(above, to.number(limits.max), result))
    return result.astype(to.number)


def _integer_to_float(v: Array, to: Type, mode: str) -> Array:
    """Rounded once: an integer of 64 bits is split, since float64 does not hold it."""
    v = np.asarray(v)
    if v.dtype.itemsize < 8:
        return (
            rounding.narrow(v.astype(np.float64), to, mode)
            if to.name != "f64"
            else v.astype(np.float64)
        )
    low = (v & v.dtype.type(0xFFFFFFFF)).astype(np.float64)
    high = ((v >> v.dtype.type(32)).astype(np.float64)) * 2.0**32
    if to.name == "f64":
        return rounding.add(high, low, mode)
    return rounding.narrow(rounding.odd(*rounding.two_sum(high, low)), to, mode)


def _saturated(v: Array, to: Type) -> Array:
    limits = np.iinfo(to.number)
    low = max(limits.min, np.iinfo(v.dtype).min)
    high = min(limits.max, np.iinfo(v.dtype).max)
    return np.clip(v, v.dtype.type(low), v.dtype.type(high)).astype(to.number)
