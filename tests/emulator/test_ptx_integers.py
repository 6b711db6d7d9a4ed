"""The emulator's integer, bit, comparison and conversion instructions against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.emulator.exact import evaluate
from tests.emulator.ptx import PtxError

EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)


def drawn(kind: str, seed: int) -> np.ndarray:
    size = int(kind[1:]) // 8
    rng = np.random.default_rng(seed)
    edges = np.array([e % 2 ** (8 * size) for e in EDGES], np.uint64)
    words = np.concatenate(
        [edges, rng.integers(0, 2**64, 200, np.uint64) >> rng.integers(0, 64, 200, np.uint64)]
    )
    return rng.permutation(words).astype(f"u{size}")


def meaning(bits: np.ndarray, kind: str) -> list[int]:
    return [int(v) for v in (bits.view(f"i{bits.itemsize}") if kind[0] == "s" else bits)]


def assert_computes(
    instruction: str, function: Callable[..., int], types: str, *inputs: np.ndarray
) -> None:
    """Each result is the function's of Python integers, modulo the width."""
    kinds = types.split()[1:]
    result = evaluate(instruction, *inputs, types=types)
    rows = zip(*(meaning(v, k) for v, k in zip(inputs, kinds, strict=True)), strict=True)
    expected = [function(*row) % 2 ** (8 * result.itemsize) for row in rows]
    assert [int(v) for v in result] == expected, instruction


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_arithmetic(kind):
    a, b, c = (drawn(kind, seed) for seed in range(3))
    width = int(kind[1:])
    three = f"{kind} {kind} {kind}"
    assert_computes(f"add.{kind} d, a, b", lambda x, y: x + y, three, a, b)
    assert_computes(f"sub.{kind} d, a, b", lambda x, y: x - y, three, a, b)
    assert_computes(f"mul.lo.{kind} d, a, b", lambda x, y: x * y, three, a, b)
    assert_computes(f"mul.hi.{kind} d, a, b", lambda x, y: x * y >> width, three, a, b)
    assert_computes(f"min.{kind} d, a, b", min, three, a, b)
    assert_computes(f"max.{kind} d, a, b", max, three, a, b)
    four = f"{three} {kind}"
    assert_computes(f"mad.lo.{kind} d, a, b, c", lambda x, y, z: x * y + z, four, a, b, c)
    assert_computes(
        f"mad.hi.{kind} d, a, b, c", lambda x, y, z: (x * y >> width) + z, four, a, b, c
    )
    divisor = np.where(b == 0, b.dtype.type(7), b)
    assert_computes(f"div.{kind} d, a, b", towards_zero, three, a, divisor)
    remainder = lambda x, y: x - towards_zero(x, y) * y  # noqa: E731
    assert_computes(f"rem.{kind} d, a, b", remainder, three, a, divisor)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind):
    a, b = drawn(kind, 0), drawn(kind, 1)
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    assert_computes(f"mul.wide.{kind} d, a, b", lambda x, y: x * y, f"{wide} {kind} {kind}", a, b)
    c = drawn(wide, 2)
    assert_computes(
        f"mad.wide.{kind} d, a, b, c", lambda x, y, z: x * y + z,
        f"{wide} {kind} {kind} {wide}", a, b, c,
    )  # fmt: skip


@pytest.mark.parametrize("width", [32, 64])
def test_counting_bits(width):
    a, kind = drawn(f"u{width}", 5), f"b{width}"
    assert_computes(f"popc.{kind} d, a", lambda x: bin(x).count("1"), f"u32 u{width}", a)
    assert_computes(f"clz.{kind} d, a", lambda x: width - x.bit_length(), f"u32 u{width}", a)
    assert_computes(f"bfind.u{width} d, a", lambda x: x.bit_length() - 1, f"u32 u{width}", a)
    assert_computes(
        f"bfind.s{width} d, a", lambda x: (~x if x < 0 else x).bit_length() - 1,
        f"u32 s{width}", a,
    )  # fmt: skip
    reverse = lambda x: int(f"{x:0{width}b}"[::-1], 2)  # noqa: E731
    assert_computes(f"brev.{kind} d, a", reverse, f"u{width} u{width}", a)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_shifts_are_clamped(kind):
    a, width = drawn(kind, 6), int(kind[1:])
    by = np.random.default_rng(7).integers(0, 2 * width, len(a), np.uint32)
    by[:2] = width, width - 1
    assert_computes(f"shr.{kind} d, a, b", lambda x, n: x >> n, f"{kind} {kind} u32", a, by)
    assert_computes(f"shl.b{width} d, a, b", lambda x, n: x << n, f"{kind} {kind} u32", a, by)


def test_funnel_shifts():
    a, b = drawn("u32", 8), drawn("u32", 9)
    by = np.random.default_rng(7).integers(0, 64, len(a), np.uint32)
    types = "u32 u32 u32 u32"
    whole = lambda low, high: (high << 32) + low  # noqa: E731
    cases: dict[str, Callable[..., int]] = {
        "shf.l.wrap": lambda x, y, n: whole(x, y) << (n % 32) >> 32,
        "shf.r.wrap": lambda x, y, n: whole(x, y) >> (n % 32),
        "shf.l.clamp": lambda x, y, n: whole(x, y) << min(n, 32) >> 32,
        "shf.r.clamp": lambda x, y, n: whole(x, y) >> min(n, 32),
    }
    for name, function in cases.items():
        assert_computes(f"{name}.b32 d, a, b, c", function, types, a, b, by)


def test_permuting_bytes():
    a, b, c = (drawn("u32", seed) for seed in (1, 2, 3))

    def permute(x: int, y: int, selector: int) -> int:
        pool = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        result = 0
        for i in range(4):
            choice = selector >> 4 * i & 15
            byte = pool[choice & 7]
            result |= (255 * (byte >> 7) if choice & 8 else byte) << 8 * i
        return result

    assert_computes("prmt.b32 d, a, b, c", permute, "u32 u32 u32 u32", a, b, c)


@pytest.mark.parametrize("table", [0xE8, 0x96, 0xF8, 0x01])
def test_bits_by_a_table(table):
    a, b, c = (drawn("u32", seed) for seed in (1, 2, 3))

    def lookup(x: int, y: int, z: int) -> int:
        rows = ((x >> i & 1) << 2 | (y >> i & 1) << 1 | (z >> i & 1) for i in range(32))
        return sum((table >> row & 1) << i for i, row in enumerate(rows))

    assert_computes(f"lop3.b32 d, a, b, c, {table}", lookup, "u32 u32 u32 u32", a, b, c)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields(kind):
    width = int(kind[1:])
    a, rng = drawn(kind, 4), np.random.default_rng(5)
    position = rng.integers(0, width, len(a), np.uint32)
    length = rng.integers(0, width + 1, len(a), np.uint32)

    def extract(x: int, at: int, count: int) -> int:
        field = (x % 2**width >> at) % 2**count
        if kind[0] == "s" and count:
            top = min(at + count - 1, width - 1)
            if x % 2**width >> top & 1:
                field |= -1 << min(count, top - at + 1)
        return field

    assert_computes(
        f"bfe.{kind} d, a, b, c", extract, f"{kind} {kind} u32 u32", a, position, length
    )
    if kind[0] == "u":
        into = drawn(kind, 6)
        for at, count in ((0, 8), (5, 11), (width - 4, 4)):

            def insert(x: int, y: int, at: int = at, count: int = count) -> int:
                mask = (2**count - 1) << at
                return (x << at & mask) | (y & ~mask)

            types = f"{kind} {kind} {kind}"
            assert_computes(f"bfi.b{width} d, a, b, {at}, {count}", insert, types, a, into)


def test_packed_halves_do_not_meet():
    a, b = drawn("u32", 1), drawn("u32", 2)
    halves = lambda x, y: (x + y) % 65536 | ((x >> 16) + (y >> 16)) % 65536 << 16  # noqa: E731
    assert_computes("add.u16x2 d, a, b", halves, "u32 u32 u32", a, b)


@pytest.mark.parametrize(("name", "test"), [
    ("eq", lambda x, y: x == y), ("ne", lambda x, y: x != y), ("lt", lambda x, y: x < y),
    ("le", lambda x, y: x <= y), ("gt", lambda x, y: x > y), ("ge", lambda x, y: x >= y),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16"])
def test_comparisons(name, test, kind):
    a, b = drawn(kind, 1), drawn(kind, 2)
    b[:20] = a[:20]
    assert_computes(
        f"setp.{name}.{kind} d, a, b", lambda x, y: int(test(x, y)), f"pred {kind} {kind}", a, b
    )


@pytest.mark.parametrize(("name", "with_nan"), [
    ("eq", False), ("ne", False), ("lt", False), ("equ", True), ("neu", True), ("ltu", True),
    ("num", False), ("nan", True),
])  # fmt: skip
def test_comparisons_with_nan(name, with_nan):
    a = np.array([np.nan, 1.0, np.nan], np.float32)
    b = np.array([1.0, np.nan, np.nan], np.float32)
    result = evaluate(f"setp.{name}.f32 d, a, b", a, b, types="pred f32 f32")
    np.testing.assert_array_equal(result, [with_nan] * 3)


def test_predicates_join_negate_and_select():
    a = np.arange(8, dtype=np.uint32)
    code = "setp.lt.u32 q, a, 6; setp.ge.and.u32 d, a, 2, q; not.pred q, d; xor.pred d, d, q; "
    result = evaluate(code + "setp.ge.or.u32 d, a, 5, !q", a, types="pred u32")
    np.testing.assert_array_equal(result, [0, 0, 1, 1, 1, 1, 1, 1])
    chosen = evaluate("setp.eq.u32 q, a, 3; selp.b32 d, 7, a, q", a, types="u32 u32")
    np.testing.assert_array_equal(chosen, [0, 1, 2, 7, 4, 5, 6, 7])
    guarded = evaluate("setp.eq.u32 q, a, 3; mov.b32 d, a; @!q mov.b32 d, 9", a, types="u32 u32")
    np.testing.assert_array_equal(guarded, [9, 9, 9, 3, 9, 9, 9, 9])


def test_integer_conversions_extend_and_saturate():
    a = drawn("u32", 3)
    low = lambda x: (x % 256 ^ 128) - 128  # noqa: E731
    assert_computes("cvt.s64.s32 d, a", lambda x: x, "s64 s32", a)
    assert_computes("cvt.u64.u32 d, a", lambda x: x, "u64 u32", a)
    assert_computes("cvt.s32.s8 d, a", low, "s32 u32", a)
    assert_computes("cvt.sat.s16.s32 d, a", lambda x: max(min(x, 32767), -32768), "s16 s32", a)


def test_packing_moves():
    a, b = drawn("u32", 1), drawn("u32", 2)
    assert_computes("mov.b64 d, {a, b}", lambda x, y: x + (y << 32), "u64 u32 u32", a, b)
    code = "mov.b64 at, {a, b}; mov.b64 {t, d}, at; sub.u32 d, d, t"
    assert_computes(code, lambda x, y: y - x, "u32 u32 u32", a, b)


def test_scopes_have_registers_of_their_own():
    a = np.arange(4, dtype=np.uint32)
    code = """{ .reg .b32 t; mov.b32 t, 5; add.u32 d, a, t; { .reg .b32 t; mov.b32 t, 9; }
    add.u32 d, d, t; }"""
    np.testing.assert_array_equal(evaluate(code, a, types="u32 u32"), a + 10)


@pytest.mark.parametrize(
    "instruction",
    ["add.cc.u32 d, a, a", "wgmma.fence.sync.aligned", "add.u32 d, a", "mul.u32 d, a, a"],
)
def test_what_is_not_known_raises(instruction):
    with pytest.raises(PtxError):
        evaluate(instruction, np.zeros(1, np.uint32), types="u32 u32")
