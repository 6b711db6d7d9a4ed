"""What the heads share: the order of logits, largest ones, and logarithms that keep small losses.

Rows of logits are tiles (ROWS, COLS); numbers of a row are (ROWS,). What holds at every edge is
defined in fastadv/reference_head.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keys(z, columns, classes):
    """int64 that are ordered as torch.argmax orders logits: NaN above all, -0 as 0; below all what
    is no class."""
    z = z + 0.0  # -0 becomes 0
    if z.dtype == tl.float64:
        bits = z.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        bits = z.to(tl.int32, bitcast=True).to(tl.int64)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFF)
    key = tl.where(z == z, key, 0x7FFFFFFFFFFFFFFF)
    return tl.where(columns < classes, key, -0x8000000000000000)


@triton.jit
def largest(key, columns):
    """(the largest key of a row, its first column), (ROWS,) int64 and int32."""
    top = tl.max(key, 1)
    at = tl.min(tl.where(key == top[:, None], columns, 0x7FFFFFFF), 1)
    return top, at


@triton.jit
def without(key, columns, at):
    """The keys of a row but that of column `at`."""
    return tl.where(columns == at[:, None], -0x8000000000000000, key)


@triton.jit
def value_at(z, columns, at):
    """A row's number in column `at`; 0 where it has none."""
    return tl.sum(tl.where(columns == at[:, None], z, 0.0), 1)


@triton.jit
def nan_unless(valid, v):
    """v, or NaN."""
    return tl.where(valid, v, float("nan"))


@triton.jit
def log1p(v):
    """log(1 + v) of v >= 0, to a few roundings of the result however small v is. NaN and inf pass.

    Up to 1 the series of 2 artanh(v / (2 + v)), whose terms fall by a factor of 9 or more.
    """
    if v.dtype == tl.float64:
        u = v + 1
        small = u == 1
        return tl.where(small, v, tl.log(u) * (v / tl.where(small, 1.0, u - 1)))
    else:
        s = v / (v + 2)
        q = s * s
        series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
        return tl.where(v <= 1, 2 * s * series, tl.log(v + 1))


@triton.jit
def log_of_positive(v):
    """log of a number > 0; of 0 a finite number, which its factor 0 takes away. NaN passes."""
    if v.dtype == tl.float64:
        least = 2.2250738585072014e-308
    else:
        least = 1.1754943508222875e-38
    return tl.log(tl.where(v < least, least, v))
