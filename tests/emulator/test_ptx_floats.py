"""The emulator's float instructions against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulator.exact import FORMATS, evaluate, rounded
from tests.emulator.ptx import PtxError

EDGES = [0.0, 1.0, 1.5, 2.0**-24, 2.0**-25, 1 + 2.0**-23, 1e-40, 2.0**-149, 2.0**-126, 3.4e38,
         3.4028234663852886e38, 1e30, 0.1, 1 / 3, 16777216.0, 16777215.0]  # fmt: skip


def numbers(count: int, kind: str, seed: int) -> np.ndarray:
    """Edges of both signs, then finite numbers of random bits; as the format's bits."""
    rng = np.random.default_rng(seed)
    dtype = {"f16": np.float16, "bf16": np.float32, "f32": np.float32, "f64": np.float64}[kind]
    edges = np.array([s * e for e in EDGES for s in (1, -1)])
    with np.errstate(over="ignore"):
        edges = edges.astype(dtype)
    unsigned = f"u{np.dtype(dtype).itemsize}"
    drawn = rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), 4 * count, unsigned).view(dtype)
    near = (rng.standard_normal(count) * 2.0 ** rng.integers(-12, 12, count)).astype(dtype)
    found = np.concatenate([edges, near, drawn])
    found = rng.permutation(found[np.isfinite(found)])[:count]
    if kind == "bf16":
        return (found.view(np.uint32) >> 16).astype(np.uint16)
    return found.view(unsigned)


def values(bits: np.ndarray, kind: str) -> list[float]:
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64).tolist()
    dtype = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]
    return bits.view(dtype).astype(np.float64).tolist()


def assert_rounds(result: np.ndarray, exact: list[Fraction], kind: str, mode: str = "rn") -> None:
    for got, q in zip(values(result, kind), exact, strict=True):
        expected = rounded(q, kind, mode)
        assert got == expected or Fraction(got) == expected, (got, float(q), mode)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_float32_rounds_once_in_every_direction(name, mode):
    a, b, c = (numbers(400, "f32", seed) for seed in range(3))
    operands = "d, a, b, c" if name == "fma" else "d, a, b"
    inputs = (a, b, c) if name == "fma" else (a, b)
    result = evaluate(f"{name}.{mode}.f32 {operands}", *inputs, types="f32" + len(inputs) * " f32")
    terms = [[Fraction(v) for v in values(t, "f32")] for t in inputs]
    exact = {
        "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
        "fma": lambda x, y, z: x * y + z,
    }[name]  # fmt: skip
    assert_rounds(result, [exact(*row) for row in zip(*terms, strict=True)], "f32", mode)


def test_a_fused_multiply_add_is_not_rounded_twice():
    """Products and sums that a float64 in between would put on the wrong side of a tie."""
    a = np.full(2, 1 + 2.0**-12, np.float32)
    b = np.full(2, 1 + 2.0**-12, np.float32)
    c = np.array([2.0**-60, -(2.0**-60)], np.float32)  # (1 + 2^-12)^2 ends on a tie of float32
    result = evaluate("fma.rn.f32 d, a, b, c", a, b, c, types="f32 f32 f32 f32").view(np.float32)
    assert result[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert result[1] == np.float32(1 + 2.0**-11)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f64"])
@pytest.mark.parametrize("name", ["add", "mul", "fma"])
def test_other_formats_round_once(name, kind):
    a, b, c = (numbers(300, kind, seed) for seed in range(3))
    if kind == "f64":  # Dekker's products need room at both ends, which kernels leave
        a, b, c = (
            v[(np.abs(v.view(np.float64)) > 1e-100) & (np.abs(v.view(np.float64)) < 1e100)][:60]
            for v in (a, b, c)
        )
    inputs = (a, b, c) if name == "fma" else (a, b)
    operands = "d, a, b, c" if name == "fma" else "d, a, b"
    types = " ".join([kind] * (1 + len(inputs)))
    result = evaluate(f"{name}.rn.{kind} {operands}", *inputs, types=types)
    terms = [[Fraction(v) for v in values(t, kind)] for t in inputs]
    exact = {"add": lambda x, y: x + y, "mul": lambda x, y: x * y,
             "fma": lambda x, y, z: x * y + z}[name]  # fmt: skip
    assert_rounds(result, [exact(*row) for row in zip(*terms, strict=True)], kind)


@pytest.mark.parametrize("name", ["div", "sqrt", "rcp"])
def test_division_and_root_are_nearest(name):
    a, b = numbers(300, "f32", 5), numbers(300, "f32", 6)
    a, b = (np.where(v == 0, np.uint32(0x3F800000), v & np.uint32(0x7FFFFFFF)) for v in (a, b))
    x, y = (v.view(np.float32) for v in (a, b))
    if name == "div":
        result = evaluate("div.rn.f32 d, a, b", a, b, types="f32 f32 f32")
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        assert_rounds(result, [Fraction(p) / Fraction(q) for p, q in pairs], "f32")
    elif name == "rcp":
        result = evaluate("rcp.rn.f32 d, a", a, types="f32 f32")
        assert_rounds(result, [1 / Fraction(p) for p in x.tolist()], "f32")
    else:
        result = evaluate("sqrt.rn.f32 d, a", a, types="f32 f32").view(np.float32)
        for got, p in zip(result.tolist(), x.tolist(), strict=True):  # between the two midpoints
            below, above = (
                float(np.nextafter(np.float32(got), np.float32(s))) for s in (0, np.inf)
            )
            assert (Fraction(below) + Fraction(got)) ** 2 / 4 <= Fraction(p)
            assert (Fraction(above) + Fraction(got)) ** 2 / 4 >= Fraction(p)


@pytest.mark.parametrize(("name", "function", "ulps"), [
    ("ex2.approx.f32", lambda v: 2.0**v, 2), ("lg2.approx.f32", math.log2, 2),
    ("rcp.approx.f32", lambda v: 1 / v, 1), ("rsqrt.approx.f32", lambda v: v**-0.5, 2),
    ("sqrt.approx.f32", math.sqrt, 1),
])  # fmt: skip
def test_approximations_err_within_the_manuals_bound(name, function, ulps):
    a = np.linspace(0.01, 30, 500, dtype=np.float32)
    result = evaluate(f"{name} d, a", a, types="f32 f32").view(np.float32)
    exact = np.array([function(v) for v in a.tolist()])
    off = np.abs(result - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert off.max() <= ulps + 0.5
    assert off.max() > 0.9  # they do err, so that no kernel passes on more than is promised


def test_flushing_treats_subnormals_as_zeros():
    a = np.array([1e-40, -1e-40, 1.0, 2.0**-126], np.float32)
    b = np.array([1e-40, 0, 1e-40, -(2.0**-149)], np.float32)
    kept = evaluate("add.f32 d, a, b", a, b, types="f32 f32 f32").view(np.float32)
    flushed = evaluate("add.ftz.f32 d, a, b", a, b, types="f32 f32 f32").view(np.float32)
    np.testing.assert_array_equal(kept, a + b)
    np.testing.assert_array_equal(flushed, np.array([0, 0, 1, 2.0**-126], np.float32))


def test_extremes_leave_nan_out_and_order_zeros():
    a = np.array([np.nan, 1, -0.0, 0.0, np.nan], np.float32)
    b = np.array([2, np.nan, 0.0, -0.0, np.nan], np.float32)
    least = evaluate("min.f32 d, a, b", a, b, types="f32 f32 f32").view(np.float32)
    most = evaluate("max.f32 d, a, b", a, b, types="f32 f32 f32").view(np.float32)
    kept = evaluate("max.NaN.f32 d, a, b", a, b, types="f32 f32 f32").view(np.float32)
    np.testing.assert_array_equal(least, np.array([2, 1, -0.0, -0.0, np.nan], np.float32))
    assert np.signbit(least[2:4]).all()
    assert not np.signbit(most[2:4]).any()
    np.testing.assert_array_equal(np.isnan(kept), [True, True, False, False, True])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_narrowing_float32(kind, mode):
    a = numbers(600, "f32", 9)
    result = evaluate(f"cvt.{mode}.{kind}.f32 d, a", a, types=f"{kind} f32")
    assert_rounds(result, [Fraction(v) for v in values(a, "f32")], kind, mode)


def test_narrowing_agrees_with_torch():
    a = numbers(2000, "f32", 10)
    for kind, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        result = evaluate(f"cvt.rn.{kind}.f32 d, a", a[:1000], types=f"{kind} f32")
        expected = torch.from_numpy(a[:1000].view(np.float32)).to(dtype).view(torch.int16)
        np.testing.assert_array_equal(result.view(np.int16), expected.numpy())


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers_to_float32(kind, mode):
    rng = np.random.default_rng(3)
    size = int(kind[1:]) // 8
    a = rng.integers(0, 2 ** (8 * size), 300, f"u{size}") >> rng.integers(0, 8 * size, 300).astype(
        f"u{size}"
    )
    a[:3] = 0, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)
    result = evaluate(f"cvt.{mode}.f32.{kind} d, a", a, types=f"f32 {kind}")
    signed = a.view(f"i{size}") if kind[0] == "s" else a
    assert_rounds(result, [Fraction(int(v)) for v in signed], "f32", mode)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_float32_to_integers_clamp(mode):
    a = np.array([0.5, 1.5, -0.5, -2.5, 3e9, -3e9, 5e9, np.nan, np.inf, -np.inf], np.float32)
    result = evaluate(f"cvt.{mode}.s32.f32 d, a", a, types="s32 f32").view(np.int32)
    whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    expected = np.clip(np.nan_to_num(whole(a.astype(np.float64)), nan=0), -(2**31), 2**31 - 1)
    np.testing.assert_array_equal(result, expected.astype(np.int64))


def test_pairs_are_rounded_half_by_half():
    rng = np.random.default_rng(4)
    a, b, c = (rng.standard_normal(64).astype(np.float16).view(np.uint32) for _ in range(3))
    result = evaluate("fma.rn.f16x2 d, a, b, c", a, b, c, types="f16x2 f16x2 f16x2 f16x2")
    parts = [v.view(np.float16).astype(np.float64).tolist() for v in (a, b, c)]
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(*parts, strict=True)]
    assert_rounds(result.view(np.uint16), exact, "f16")
    packed = evaluate("cvt.rn.bf16x2.f32 d, a, b", a.view(np.float16).astype(np.float32)[:32],
                      b.view(np.float16).astype(np.float32)[:32], types="b32 f32 f32")  # fmt: skip
    low = torch.from_numpy(b.view(np.float16).astype(np.float32)[:32]).bfloat16().view(torch.int16)
    np.testing.assert_array_equal(packed.view(np.int16)[::2], low.numpy())


def test_unknown_modifiers_raise():
    a = np.ones(32, np.float32)
    for instruction in ("add.rna.f32 d, a, a", "sqrt.rm.f32 d, a", "tan.approx.f32 d, a",
                        "cvt.rn.e4m3x2.f32 d, a, a"):  # fmt: skip
        with pytest.raises(PtxError, match=r"not known"):
            evaluate(instruction, a, types="f32 f32")


def test_the_exact_rounding_itself():
    """Python's own floats are float64: the one format that it rounds to by itself."""
    for q in (Fraction(1, 3), Fraction(10**300) * 7, Fraction(1, 10**320), Fraction(-22, 7)):
        assert rounded(q, "f64") == Fraction(float(q))
    assert rounded(FORMATS["f32"][2] * 2, "f32") == math.inf
    assert rounded(FORMATS["f32"][2] * 2, "f32", "rz") == FORMATS["f32"][2]
