"""What the heads share: the order of logits, largest ones, and logarithms that keep small losses.

Rows of logits are tiles (ROWS, COLS); numbers of a row are (ROWS,). What holds at every edge is
defined in fastadv/reference_head.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

MOST_32 = tl.constexpr(0x7FFFFFFF)
MOST_64 = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def load_logits(logits, rows, columns, samples, classes, C: tl.constexpr):
    """(ROWS, COLS) of the logits, -inf where there is none, and their offsets and mask."""
    offsets = rows.to(tl.int64)[:, None] * classes + columns
    mask = (rows < samples)[:, None] & (columns < classes)
    return tl.load(logits + offsets, mask=mask, other=float("-inf")).to(C), offsets, mask


@triton.jit
def labels(y, rows, samples, classes):
    """(a class in range, whether it is the one given), of each row."""
    label = tl.load(y + rows, mask=rows < samples, other=-1)
    valid = (label >= 0) & (label < classes)
    return tl.where(valid, label, 0).to(tl.int32), valid


@triton.jit
def logit_at(logits, rows, columns, samples, classes, C: tl.constexpr):
    """(ROWS,): each row's logit in a column of its own."""
    offsets = rows.to(tl.int64) * classes + columns
    return tl.load(logits + offsets, mask=rows < samples, other=0).to(C)


@triton.jit
def keys(z):
    """Integers that are ordered as torch.argmax orders logits: NaN above all, -0 as 0."""
    z = z + 0.0  # -0 becomes 0
    if z.dtype == tl.float64:
        bits = z.to(tl.int64, bitcast=True)
        return tl.where(z == z, bits ^ (bits >> 63 & MOST_64), MOST_64)
    else:
        bits = z.to(tl.int32, bitcast=True)
        return tl.where(z == z, bits ^ (bits >> 31 & MOST_32), MOST_32)


@triton.jit
def largest(key, columns):
    """(the largest key of a row, its first column), (ROWS,)."""
    top = tl.max(key, 1)
    at = tl.min(tl.where(key == top[:, None], columns, MOST_32), 1)
    return top, at


@triton.jit
def below(key):
    """Zeros like `key` less a number below every key: that of -inf is larger."""
    if key.dtype == tl.int64:
        return tl.zeros_like(key) - MOST_64
    else:
        return tl.zeros_like(key) - MOST_32


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
