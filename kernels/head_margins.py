"""Binary cross-entropy, margin and dlr: loss, gradient of the logits and prediction, in one launch.

Every logit is read once and its gradient written once, 8 B in float32, however many classes
(binary cross-entropy reads y, 4 B more). margin and dlr have gradients of 2 and 5 entries: they
keep a row's largest logits, and write the row from these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.head_math import (
    below,
    keys,
    labels,
    largest,
    load_logits,
    log1p,
    logit_at,
    nan_unless,
)


@triton.jit(do_not_specialize=("samples", "units", "sign"))
def binary_cross_entropy(
    logits, y, loss, grad, prediction, samples: tl.int32, units: tl.int32, sign: tl.int32,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """sum of log(1 + exp(s)), s = (1 - 2 y) z, times `sign`. y: like the logits, 0 or 1."""
    C: tl.constexpr = loss.dtype.element_ty
    classes = units * UNIT
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], C)
    for first in range(0, classes, COLS):
        columns = first + tl.arange(0, COLS)[None, :]
        z, offsets, mask = load_logits(logits, rows, columns, samples, classes, C)
        target = tl.load(y + offsets, mask=mask, other=0)
        one = target == 1
        valid = one | (target == 0)
        s = tl.where(one, -z, z)
        e = tl.exp(tl.where(s > 0, -s, s))
        share = 1 / (1 + e)
        sigmoid = tl.where(s > 0, share, e * share)
        each = nan_unless(valid, tl.where(s < 0, 0.0, s) + log1p(e))
        total += tl.sum(tl.where(mask, each, 0.0), 1)
        g = tl.where(valid, sign * tl.where(one, -sigmoid, sigmoid), 0.0)
        tl.store(grad + offsets, g.to(grad.dtype.element_ty), mask=mask)
        tl.store(prediction + offsets, z > 0, mask=mask)
    tl.store(loss + rows, sign * total, mask=rows < samples)


@triton.jit
def _insert(key, at, key0, at0, key1, at1, key2, at2, key3, at3):
    """The four largest of four, in falling order, and one more of a later column."""
    over0 = key > key0
    over1 = key > key1
    over2 = key > key2
    over3 = key > key3
    new3 = tl.where(over2, key2, tl.where(over3, key, key3))
    new_at3 = tl.where(over2, at2, tl.where(over3, at, at3))
    new2 = tl.where(over1, key1, tl.where(over2, key, key2))
    new_at2 = tl.where(over1, at1, tl.where(over2, at, at2))
    new1 = tl.where(over0, key0, tl.where(over1, key, key1))
    new_at1 = tl.where(over0, at0, tl.where(over1, at, at1))
    new0 = tl.where(over0, key, key0)
    new_at0 = tl.where(over0, at, at0)
    return new0, new_at0, new1, new_at1, new2, new_at2, new3, new_at3


@triton.jit
def _largest_four(
    logits, rows, samples, classes, KEPT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """The columns of the KEPT largest logits of each row, in falling order, in a pass over it."""
    key0 = below(keys(tl.zeros([ROWS], C)))
    at0 = tl.zeros([ROWS], tl.int32)
    key1, at1, key2, at2, key3, at3 = key0, at0, key0, at0, key0, at0
    for first in range(0, classes, COLS):
        columns = first + tl.arange(0, COLS)[None, :]
        z, _, _ = load_logits(logits, rows, columns, samples, classes, C)
        key = keys(z)
        for _ in tl.static_range(KEPT):
            top, at = largest(key, columns)
            key = tl.where(columns == at[:, None], below(key), key)
            key0, at0, key1, at1, key2, at2, key3, at3 = _insert(
                top, at, key0, at0, key1, at1, key2, at2, key3, at3
            )
    return at0, at1, at2, at3


@triton.jit
def _put(
    grad, rows, samples, classes, at0, c0, at1, c1, at2, c2, at3, c3, at4, c4,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Writes rows of zeros but for five entries, added in this order where they meet."""
    for first in range(0, classes, COLS):
        columns = first + tl.arange(0, COLS)[None, :]
        g = tl.where(columns == at0[:, None], c0[:, None], 0.0)
        g += tl.where(columns == at1[:, None], c1[:, None], 0.0)
        g += tl.where(columns == at2[:, None], c2[:, None], 0.0)
        g += tl.where(columns == at3[:, None], c3[:, None], 0.0)
        g += tl.where(columns == at4[:, None], c4[:, None], 0.0)
        offsets = rows.to(tl.int64)[:, None] * classes + columns
        mask = (rows < samples)[:, None] & (columns < classes)
        tl.store(grad + offsets, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("samples", "units", "sign"))
def margin(
    logits, y, loss, grad, prediction, samples: tl.int32, units: tl.int32, sign: tl.int32,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """max_{j != y} z_j - z_y, times `sign`. y: (N,) int64."""
    C: tl.constexpr = loss.dtype.element_ty
    classes = units * UNIT
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first, second, _, _ = _largest_four(logits, rows, samples, classes, 2, ROWS, COLS, C)
    label, valid = labels(y, rows, samples, classes)
    other = tl.where(first == label, second, first)
    of_label = logit_at(logits, rows, label, samples, classes, C)
    value = logit_at(logits, rows, other, samples, classes, C) - of_label
    there = rows < samples
    tl.store(loss + rows, nan_unless(valid, sign * value), mask=there)
    tl.store(prediction + rows, first.to(tl.int64), mask=there)
    slope = tl.where(valid, tl.zeros([ROWS], C) + sign, 0.0)
    zero = tl.zeros([ROWS], C)
    _put(
        grad, rows, samples, classes, other, slope, label, -slope, label, zero, label, zero,
        label, zero, ROWS, COLS,
    )  # fmt: skip


@triton.jit(do_not_specialize=("samples", "units"))
def dlr(
    logits, y, target, loss, grad, prediction, samples: tl.int32, units: tl.int32,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """(max_{j != y} z_j - z_y) / (z_1st - z_3rd); with a target (z_t - z_y) over
    z_1st - (z_3rd + z_4th) / 2 (2003.01690). A divisor of 0 counts as the constant 1."""
    C: tl.constexpr = loss.dtype.element_ty
    classes = units * UNIT
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first, second, third, fourth = _largest_four(logits, rows, samples, classes, 4, ROWS, COLS, C)
    label, valid = labels(y, rows, samples, classes)
    if target is None:
        other = tl.where(first == label, second, first)
        fourth = third
    else:
        other, also = labels(target, rows, samples, classes)
        valid = valid & also
    of_label = logit_at(logits, rows, label, samples, classes, C)
    gap = logit_at(logits, rows, other, samples, classes, C) - of_label
    lower = logit_at(logits, rows, third, samples, classes, C)
    lower = (lower + logit_at(logits, rows, fourth, samples, classes, C)) * 0.5
    spread = logit_at(logits, rows, first, samples, classes, C) - lower
    divisor = tl.where(spread == 0, 1.0, spread)
    slope = tl.where(valid, 1 / divisor, 0.0)
    value = gap / divisor
    pull = tl.where(valid & (spread != 0), value * slope, 0.0)
    there = rows < samples
    tl.store(loss + rows, nan_unless(valid, value), mask=there)
    tl.store(prediction + rows, first.to(tl.int64), mask=there)
    _put(
        grad, rows, samples, classes, other, slope, label, -slope, first, -pull, third,
        pull * 0.5, fourth, pull * 0.5, ROWS, COLS,
    )  # fmt: skip
