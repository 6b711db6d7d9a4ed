"""Arithmetic on float types, and the instructions that only approximate it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.emulator.ptx import rounding
from tests.emulator.ptx.elementwise import check, elementwise
from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.machine import Step
from tests.emulator.ptx.program import Instruction, Program
from tests.emulator.ptx.types import PACKED, TYPES, Array, Type, encode, pairwise

# The largest errors that PTX's manual allows, in units in the last place. An approximation here
# errs by up to as much, by a hash of its result: no test passes on more than is promised.
ULPS = {"ex2": 2, "lg2": 2, "rcp": 1, "rsqrt": 2, "sqrt": 1, "div": 2, "sin": 2, "cos": 2,
        "tanh": 32}  # fmt: skip
_TWO = ("add", "sub", "mul", "div", "min", "max", "copysign")
_ONE = ("neg", "abs", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh")
_MODIFIERS = {*rounding.MODES, "ftz", "sat", "approx", "full", "NaN", "relu"}


def compile_float(program: Program, ins: Instruction) -> Step:
    name, kind = ins.parts[0], TYPES[ins.parts[-1]]
    check(ins, _MODIFIERS)
    mode = next((m for m in rounding.MODES if ins.has(m)), "rn")
    part = TYPES[PACKED[kind.name]] if kind.name in PACKED else kind
    function = rounding.flushing(_function(name, part, mode, ins), ins.has("ftz"))
    if ins.has("sat") or ins.has("relu"):
        function = _clamped(function, ins.has("sat"))
    count = 3 if name in ("fma", "mad") else 2 if name in _TWO else 1
    if kind.name in PACKED:
        whole = TYPES[f"b{8 * kind.size}"]
        return elementwise(program, ins, whole, [whole] * count, pairwise(function, kind))
    return elementwise(program, ins, kind, [kind] * count, function)


def _clamped(function: Callable[..., Array], both: bool) -> Callable[..., Array]:
    def clamped(*v: Array) -> Array:
        result = np.asarray(function(*v))
        zero, one = result.dtype.type(0), result.dtype.type(1)
        low = np.where(result > 0, result, zero)  # NaN becomes 0
        return np.where(low > 1, one, low) if both else low

    return clamped


def _function(name: str, kind: Type, mode: str, ins: Instruction) -> Callable[..., Array]:
    """The instruction on numbers of one type, rounded to it."""
    if name in ("fma", "mad"):
        return lambda a, b, c: rounding.fma(a, b, c, kind, mode)
    if name in ("neg", "abs"):
        return np.negative if name == "neg" else np.abs
    if name == "copysign":
        return lambda sign, size: np.copysign(size, sign)
    if name in ("min", "max"):
        return lambda a, b: _extreme(a, b, name == "min", ins.has("NaN"))
    if ins.has("approx") or ins.has("full") or name in ("ex2", "lg2", "sin", "cos", "tanh"):
        return lambda *v: approximate(_exact(name, *(u.astype(np.float64) for u in v)), kind, name)
    return _rounded(name, kind, mode)


def _rounded(name: str, kind: Type, mode: str) -> Callable[..., Array]:
    """add, sub, mul in every direction; div, sqrt, rcp to the nearest."""
    if mode != "rn" and name not in ("add", "sub", "mul"):
        raise PtxError(f"{name}.{mode} is not known")
    if kind.size == 2:  # float32 has more than twice the digits: rounding twice is rounding once
        wide = TYPES["f32"]
        inner = _rounded(name, wide, mode)
        return lambda *v: rounding.narrow(inner(*(u.astype(np.float32) for u in v)), kind, mode)
    if name == "add":
        return lambda a, b: rounding.add(a, b, mode)
    if name == "sub":
        return lambda a, b: rounding.add(a, -b, mode)
    if name == "mul":
        return lambda a, b: rounding.multiply(a, b, mode)
    if name == "div":
        return np.divide
    if name == "sqrt":
        return np.sqrt
    if name == "rcp":
        return lambda a: a.dtype.type(1) / a
    raise PtxError(f"{name}.{mode} is not known")


def _exact(name: str, *v: Array) -> Array:
    """In float64."""
    if name == "div":
        return np.asarray(v[0] / v[1])
    a = v[0]
    if name == "rcp":
        return np.asarray(1 / a)
    if name == "rsqrt":
        return np.asarray(1 / np.sqrt(a))
    functions = {"sqrt": np.sqrt, "ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos,
                 "tanh": np.tanh}  # fmt: skip
    return np.asarray(functions[name](a))


def approximate(exact: Array, kind: Type, name: str) -> Array:
    """The result rounded, and moved by up to ULPS[name] units."""
    nearest = np.atleast_1d(rounding.narrow(exact, kind))
    if kind.name != "f32":
        return nearest.reshape(exact.shape)
    bits = encode(nearest, kind)
    most = ULPS[name]
    move = (bits * np.uint32(2654435761) >> np.uint32(13)) % np.uint32(2 * most + 1)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    plain = (magnitude > 0x00800040) & (magnitude < 0x7F7FFF00)
    moved = np.where(plain, bits + move - np.uint32(most), bits).astype(np.uint32)
    return moved.view(np.float32).reshape(exact.shape)


def _extreme(a: Array, b: Array, least: bool, keep_nan: bool) -> Array:
    """-0 is smaller than +0; a NaN is left out, or kept with .NaN."""
    a, b = np.broadcast_arrays(a, b)
    first = np.signbit(a) if least else ~np.signbit(a)
    chosen = np.where((a < b) if least else (a > b), a, b)
    chosen = np.where(a == b, np.where(first, a, b), chosen)
    if keep_nan:
        return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), chosen)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, chosen))


FLOATS = (*_TWO, *_ONE, "fma", "mad")
