"""The scalar formulas of csrc/math.h for Triton: the same operations in the same order.

The linf step has the bits of fastadv/reference.py by these alone, if nothing is fused: kernels are
launched with enable_fp_fusion=False. Data of a 16-bit dtype is computed in float32, float64 data in
float64. csrc/math.h says what each formula is for and why it is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bits_of(v):
    """The bits of v, as integers of its width."""
    if v.dtype.primitive_bitwidth == 64:
        return v.to(tl.int64, bitcast=True)
    elif v.dtype.primitive_bitwidth == 32:
        return v.to(tl.int32, bitcast=True)
    else:
        return v.to(tl.int16, bitcast=True)


@triton.jit
def turn(v, by):
    """v with its sign turned where `by` is negative, -0 included."""
    if v.dtype == tl.float64:
        return (bits_of(v) ^ (bits_of(by) & -0x8000000000000000)).to(tl.float64, bitcast=True)
    else:
        return (bits_of(v) ^ (bits_of(by) & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def magnitude(v):
    """|v|, NaN without its sign too."""
    if v.dtype == tl.float64:
        return (bits_of(v) & 0x7FFFFFFFFFFFFFFF).to(tl.float64, bitcast=True)
    else:
        return (bits_of(v) & 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def next_against(stored, v, origin):
    """The neighbour of `stored`, of value v: below where origin > 0, above where origin < 0."""
    bits = bits_of(stored)
    return tl.where(turn(v, origin) > 0, bits - 1, bits + 1).to(stored.dtype, bitcast=True)


@triton.jit
def add_towards(a, b):
    """a + b rounded towards a: |result - a| <= |b| exactly (Knuth's TwoSum)."""
    total = a + b
    b_part = total - a
    error = (a - (total - b_part)) + (b - b_part)
    return tl.where(turn(error, b) < 0, next_against(total, total, b), total)


@triton.jit
def add_down(a, b):
    """a + b rounded down, for b >= 0."""
    total = a + b
    overshot = (total - a > b) | (total - b > a)
    return tl.where(overshot, next_against(total, total, b), total)


@triton.jit
def subtract_up(a, b):
    """a - b rounded up, for b >= 0."""
    difference = a - b
    overshot = (a - difference > b) | (difference + b < a)
    return tl.where(overshot, next_against(difference, difference, turn(b, b * 0 - 1)), difference)


@triton.jit
def sign(v):
    """1, -1, or 0 for zero and NaN."""
    return tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, 0.0)).to(v.dtype)


@triton.jit
def clamp(v, lower, upper):
    """NaN passes, and equal zeros stay as they are, as in reference.clamp."""
    v = tl.where(v < lower, lower, v)
    return tl.where(v > upper, upper, v)


@triton.jit
def encode_within(v, lower, upper, T: tl.constexpr):
    """v rounded to T, or its neighbour where the rounding left [lower, upper]."""
    nearest = v.to(T)
    if T.primitive_bitwidth >= 32:
        return nearest
    else:
        value = nearest.to(v.dtype)
        beyond = (value > upper) | (value < lower)
        return tl.where(beyond, next_against(nearest, value, value - v), nearest)


@triton.jit
def project_linf(v, x, radius, lower, upper, T: tl.constexpr):
    """The point of T nearest to v in {|. - x| <= radius} and the box."""
    low, high = subtract_up(x, radius), add_down(x, radius)
    inside = clamp(clamp(v, low, high), lower, upper)
    return encode_within(inside, clamp(low, lower, upper), clamp(high, lower, upper), T)


@triton.jit
def place_towards(v, x, lower, upper, T: tl.constexpr):
    """v, clamped to the box and rounded towards x."""
    v = clamp(v, lower, upper)
    nearest = v.to(T)
    if T.primitive_bitwidth >= 32:
        return nearest
    else:
        value = nearest.to(v.dtype)
        rounding = value - v  # x may lie beyond the box: it is not left towards x
        beyond = (turn(rounding, v - x) > 0) | (value > upper) | (value < lower)
        return tl.where(beyond, next_against(nearest, value, rounding), nearest)
