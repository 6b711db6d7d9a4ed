"""direction <- the weighted sum over the batch of the gradients, or of their signs.

A column is summed in float64 in the order of the batch: by one program, or, where a sample has too
few columns to fill a device, by up to 16, whose sums `combine` adds in their order. No atomics: the
result does not depend on the schedule. 4 B read an element of the batch in float32, each once, and
no more than 264 B moved an element of one sample.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import magnitude, sign
from fastadv.kernels.layout import load


@triton.jit(do_not_specialize=("samples", "units", "rows"))
def accumulate(
    grads, weights, sums, samples: tl.int64, units: tl.int32, rows: tl.int64,
    UNIT: tl.constexpr, SIGNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums: (programs, units * UNIT) float64. Program (i, j) adds `rows` gradients of block i.

    A gradient of weight 0 is left out, whatever its numbers.
    """
    C: tl.constexpr = tl.float64 if grads.dtype.element_ty == tl.float64 else tl.float32
    size = units * UNIT
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < size
    part = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    begin = part * rows
    for sample in tl.range(begin, tl.minimum(begin + rows, samples), loop_unroll_factor=4):
        g = load(grads, sample * size + lanes, mask, C, True)
        if SIGNS:
            g = sign(g)
        wide = g.to(tl.float64)
        if weights is not None:
            w = tl.load(weights + sample).to(tl.float64)
            wide = tl.where(w == 0, 0.0, w * wide)
        total += wide
    tl.store(sums + part * size + lanes, total, mask=mask)


@triton.jit(do_not_specialize=("parts", "units"))
def combine(
    sums, direction, lengths, parts: tl.int32, units: tl.int32, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """direction: (units * UNIT,) in the compute dtype. lengths: None, or of each program's part of
    it the l1 norm, float64."""
    size = units * UNIT
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < size
    total = tl.zeros([BLOCK], tl.float64)
    for part in range(0, parts):
        total += tl.load(sums + tl.cast(part, tl.int64) * size + lanes, mask=mask, other=0)
    stored = total.to(direction.dtype.element_ty)
    tl.store(direction + lanes, stored, mask=mask)
    if lengths is not None:
        tl.store(lengths + tl.program_id(0), tl.sum(magnitude(stored).to(tl.float64)))


@triton.jit(do_not_specialize=("programs", "units"))
def advance(
    velocity, direction, lengths, momentum: tl.float64, programs: tl.int32, units: tl.int32,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """velocity <- momentum * velocity + direction / ||direction||_1 (1710.06081); `lengths` as
    `programs` of combine left them."""
    size = units * UNIT
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < size
    shares = tl.zeros([BLOCK], tl.float64)
    for first in range(0, programs, BLOCK):
        each = first + tl.arange(0, BLOCK)
        shares += tl.load(lengths + each, mask=each < programs, other=0)
    length = tl.sum(shares)
    g = load(direction, lanes, mask, tl.float64, True)
    v = load(velocity, lanes, mask, tl.float64, True)
    moved = momentum * v + tl.where(length > 0, g / length, 0.0)
    tl.store(velocity + lanes, moved.to(velocity.dtype.element_ty), mask=mask)
