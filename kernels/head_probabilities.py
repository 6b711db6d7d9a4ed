"""Cross-entropy and KL: loss, gradient of the logits and prediction of softmax(z), in one launch.

Rows of up to 8192 classes (4096 in float64) stay in registers: 4 B read and 4 B written a logit in
float32 (kl reads y, 4 B more). Longer ones are read twice, first for the sums, which are rescaled
where a tile has a larger logit, then for the gradient.

The largest logit's 1 is kept out of cross-entropy's sum: what it would be added to survives, and a
loss of 1e-20 is not rounded to 0, where a sample that is sure of y would stall.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.head_math import (
    keys,
    labels,
    largest,
    load_logits,
    log1p,
    log_of_positive,
    logit_at,
    nan_unless,
    value_at,
)


@triton.jit
def _rest(z, columns, top, at):
    """sum of exp(z - top) over a tile, but for column `at`."""
    e = tl.exp(z - top[:, None])
    return tl.sum(tl.where((columns == at[:, None]) | (z == float("-inf")), 0.0, e), 1)


@triton.jit
def _scaled(share, by):
    """share * exp(by) where a sum is taken over to a larger logit; by is -inf if it was of none."""
    return tl.where(by == float("-inf"), 0.0, share * tl.exp(by))


@triton.jit
def _cross_entropy_gradient(z, columns, top, label, valid, less_one, scale):
    p = tl.where(columns == label[:, None], less_one[:, None], tl.exp(z - top[:, None]))
    return tl.where(valid[:, None], p * scale[:, None], 0.0)


@triton.jit
def _top_and_rest(
    logits, rows, samples, classes, key, at, top, rest, COLS: tl.constexpr, C: tl.constexpr
):
    """What the first tile of long rows gave, and the others with it."""
    for first in range(COLS, classes, COLS):
        columns = first + tl.arange(0, COLS)[None, :]
        z, _, _ = load_logits(logits, rows, columns, samples, classes, C)
        key_here, at_here = largest(keys(z), columns)
        top_here = value_at(z, columns, at_here)
        rest_here = _rest(z, columns, top_here, at_here)
        more = key_here > key
        ours = _scaled(1 + rest, top - top_here) + rest_here
        theirs = _scaled(1 + rest_here, top_here - top) + rest
        rest = tl.where(more, ours, theirs)
        key = tl.where(more, key_here, key)
        at = tl.where(more, at_here, at)
        top = tl.where(more, top_here, top)
    return at, top, rest


@triton.jit(do_not_specialize=("samples", "units", "sign"))
def cross_entropy(
    logits, y, loss, grad, prediction, samples: tl.int32, units: tl.int32, sign: tl.int32,
    UNIT: tl.constexpr, LONG: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """-log p_y and p - onehot(y), times `sign`. y: (N,) int64."""
    C: tl.constexpr = loss.dtype.element_ty
    T: tl.constexpr = grad.dtype.element_ty
    classes = units * UNIT
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < samples
    columns = tl.arange(0, COLS)[None, :]
    z, offsets, mask = load_logits(logits, rows, columns, samples, classes, C)
    key, at = largest(keys(z), columns)
    top = value_at(z, columns, at)
    rest = _rest(z, columns, top, at)
    if LONG:
        at, top, rest = _top_and_rest(
            logits, rows, samples, classes, key, at, top, rest, COLS, C
        )  # fmt: skip
    rest = rest + (top - top)  # NaN if the largest is not finite, as in torch
    label, valid = labels(y, rows, samples, classes)
    at_label = logit_at(logits, rows, label, samples, classes, C) - top
    total = 1 + rest
    less_one = tl.where(label == at, -rest, tl.exp(at_label) - total)
    scale = sign / total
    tl.store(loss + rows, nan_unless(valid, sign * (log1p(rest) - at_label)), mask=there)
    tl.store(prediction + rows, at.to(tl.int64), mask=there)
    if LONG:
        for first in range(0, classes, COLS):
            columns = first + tl.arange(0, COLS)[None, :]
            z, offsets, mask = load_logits(logits, rows, columns, samples, classes, C)
            g = _cross_entropy_gradient(z, columns, top, label, valid, less_one, scale)
            tl.store(grad + offsets, g.to(T), mask=mask)
    else:
        g = _cross_entropy_gradient(z, columns, top, label, valid, less_one, scale)
        tl.store(grad + offsets, g.to(T), mask=mask)


@triton.jit
def _sums(z, y, top):
    """(sum of exp(z - top), of y, of y (log y - (z - top))) over a tile."""
    shifted = tl.where(z == float("-inf"), z, z - top[:, None])
    e = tl.exp(shifted)
    term = tl.where(y > 0, y * (log_of_positive(y) - shifted), nan_unless(y == 0, y * 0))
    return tl.sum(e, 1), tl.sum(y, 1), tl.sum(term, 1)


@triton.jit
def _all_sums(
    logits, y, rows, samples, classes, key, at, top, total, mass, cross, COLS: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """What the first tile of long rows gave, and the others with it."""
    for first in range(COLS, classes, COLS):
        columns = first + tl.arange(0, COLS)[None, :]
        z, offsets, mask = load_logits(logits, rows, columns, samples, classes, C)
        target = tl.load(y + offsets, mask=mask, other=0)
        key_here, at_here = largest(keys(z), columns)
        more = key_here > key
        top_now = tl.where(more, value_at(z, columns, at_here), top)
        total_here, mass_here, cross_here = _sums(z, target, top_now)
        cross = cross + tl.where(mass == 0, 0.0, mass * (top_now - top)) + cross_here
        total = _scaled(total, top - top_now) + total_here
        mass = mass + mass_here
        key = tl.where(more, key_here, key)
        at = tl.where(more, at_here, at)
        top = top_now
    return at, top, total, mass, cross


@triton.jit(do_not_specialize=("samples", "units", "sign"))
def kl(
    logits, y, loss, grad, prediction, samples: tl.int32, units: tl.int32, sign: tl.int32,
    UNIT: tl.constexpr, LONG: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """sum of y log(y / p), 0 where y is 0, and p * sum(y) - y, times `sign`. y: like the logits."""
    C: tl.constexpr = loss.dtype.element_ty
    T: tl.constexpr = grad.dtype.element_ty
    classes = units * UNIT
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLS)[None, :]
    z, offsets, mask = load_logits(logits, rows, columns, samples, classes, C)
    target = tl.load(y + offsets, mask=mask, other=0)
    key, at = largest(keys(z), columns)
    top = value_at(z, columns, at)
    total, mass, cross = _sums(z, target, top)
    if LONG:
        at, top, total, mass, cross = _all_sums(
            logits, y, rows, samples, classes, key, at, top, total, mass, cross, COLS, C
        )  # fmt: skip
    total = total + (top - top)  # NaN if the largest is not finite, as in torch
    scale = sign * mass / total
    value = sign * (cross + mass * log_of_positive(total))
    tl.store(loss + rows, value, mask=rows < samples)
    tl.store(prediction + rows, at.to(tl.int64), mask=rows < samples)
    if LONG:
        for first in range(0, classes, COLS):
            columns = first + tl.arange(0, COLS)[None, :]
            z, offsets, mask = load_logits(logits, rows, columns, samples, classes, C)
            target = tl.load(y + offsets, mask=mask, other=0)
            g = tl.exp(z - top[:, None]) * scale[:, None] - target * sign
            tl.store(grad + offsets, g.to(T), mask=mask)
    else:
        g = tl.exp(z - top[:, None]) * scale[:, None] - target * sign
        tl.store(grad + offsets, g.to(T), mask=mask)
