"""Exact arithmetic for the emulator's own tests: rounding by whole numbers, and one instruction run
on arrays."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tests.emulator.ptx import run

# digits, exponent of the last place of a subnormal, the largest number
FORMATS = {
    "f16": (11, -24, Fraction(65504)),
    "bf16": (8, -133, Fraction(2) ** 128 - Fraction(2) ** 120),
    "f32": (24, -149, Fraction(2) ** 128 - Fraction(2) ** 104),
    "f64": (53, -1074, Fraction(2) ** 1024 - Fraction(2) ** 971),
}
WIDTH = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "pred": 8}


def rounded(q: Fraction, kind: str, mode: str = "rn") -> Fraction | float:
    """q rounded to a format, by integers alone; beyond it infinity, where the mode goes there."""
    digits, least, most = FORMATS[kind]
    if q == 0:
        return q
    exponent = q.numerator.bit_length() - q.denominator.bit_length()
    exponent -= abs(q) < Fraction(2) ** exponent
    quantum = Fraction(2) ** max(exponent - digits + 1, least)
    scaled = q / quantum
    whole = {
        "rn": round(scaled), "rz": math.trunc(scaled), "rm": math.floor(scaled),
        "rp": math.ceil(scaled),
    }[mode]  # fmt: skip
    result = whole * quantum
    if abs(result) <= most:
        return result
    outward = mode == "rn" or (mode == "rp" and q > 0) or (mode == "rm" and q < 0)
    return math.copysign(math.inf, q) if outward else math.copysign(1, q) * most


def width_of(kind: str) -> int:
    return WIDTH.get(kind) or (32 if kind.endswith("x2") and "32" not in kind else int(kind[1:3]))


def evaluate(instruction: str, *inputs: np.ndarray, types: str, shared: int = 0) -> np.ndarray:
    """The results of an instruction, one a thread. `types`: of the result and the inputs, as in
    "f32 f32 s32"; the instruction's operands are d, a, b, c: "add.rn.f32 d, a, b"."""
    kinds = types.split()
    count = len(inputs[0])
    result = np.zeros(count, f"u{width_of(kinds[0]) // 8}")
    lines = ["mov.u32 t, %tid.x; cvt.u64.u32 at, t;"]
    names = "abc"
    for i, kind in enumerate(kinds[1:]):
        size = width_of(kind) // 8
        lines.append(f"ld.param.u64 p, [k_{i}]; mad.lo.u64 p, at, {size}, p;")
        lines.append(f"ld.global.b{8 * size} {names[i]}, [p];")
    lines.append(f"ld.param.u64 p, [k_{len(inputs)}];")
    lines.append(f"mad.lo.u64 p, at, {result.itemsize}, p;")
    stored = (
        "selp.b16 w, 1, 0, d; st.global.b8 [p], w;"
        if kinds[0] == "pred"
        else (f"st.global.b{8 * result.itemsize} [p], d;")
    )
    declared = [f".reg .b{width_of(k)} {n};" for k, n in zip(kinds[1:], names, strict=False)]
    declared.append(".reg .pred d;" if kinds[0] == "pred" else f".reg .b{width_of(kinds[0])} d;")
    ptx = (
        ".version 8.8\n.target sm_80\n.address_size 64\n.visible .entry k("
        + ", ".join(f".param .u64 k_{i}" for i in range(len(inputs) + 1))
        + ")\n{\n.reg .b32 t; .reg .b64 at, p; .reg .b16 w; .reg .pred q;\n"
        + "\n".join([*declared, *lines, instruction.rstrip(";") + ";", stored, "ret;"])
        + "\n}\n"
    )
    run(ptx, [*(np.ascontiguousarray(v) for v in inputs), result], 1, count, shared_bytes=shared)
    return result
