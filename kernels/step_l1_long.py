"""The l1 step of samples that no program's registers hold: see step_l1.py.

One program a sample reads it again in every round: 4 B an element in the 16 of the search for the
largest gradients (8 in bfloat16), 12 B in each of Newton's, about 8, and writes in a last one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import magnitude
from fastadv.kernels.layout import box_at, load
from fastadv.kernels.step_l1 import (
    guess,
    left_of,
    length_and_cap,
    placed,
    reach,
    stride_of,
    unsigned_bits,
)
from fastadv.kernels.step_l2 import NUMBERS, room_of


@triton.jit
def _chosen(grad, base, size, prefix, shift, rank, C: tl.constexpr, BLOCK: tl.constexpr):
    """chosen() of a whole sample. A lane's counts fit their fields, their sums may not."""
    counts = tl.zeros([BLOCK], tl.int64)
    for first in range(0, size, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        g = load(grad, base + lanes, lanes < size, C, True)
        counts += reach(unsigned_bits(magnitude(g)), prefix, shift)
    one = (tl.sum(counts & 0x1FFFFF) >= rank).to(tl.int64)
    two = (tl.sum(counts >> 21 & 0x1FFFFF) >= rank).to(tl.int64)
    three = (tl.sum(counts >> 42) >= rank).to(tl.int64)
    return prefix | ((one + two + three).to(prefix.dtype) << shift)


@triton.jit
def _moving(grad, base, size, smallest, C: tl.constexpr, BLOCK: tl.constexpr):
    """How many elements the steepest step moves."""
    moving = tl.zeros([BLOCK], tl.int32)
    for first in range(0, size, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        g = load(grad, base + lanes, lanes < size, C, True)
        moving += ((magnitude(g) >= smallest) & (g != 0)).to(tl.int32)
    return tl.sum(moving)


@triton.jit
def _at(
    x_adv, grad, x, bounds, base, first, size, channels, inner, smallest, share,
    EACH: tl.constexpr, STEEPEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(point, origin, stride, lower, upper) of a tile."""
    C: tl.constexpr = share.dtype
    lanes = first + tl.arange(0, BLOCK)
    mask = lanes < size
    point = load(x_adv, base + lanes, mask, C, True)
    origin = load(x, base + lanes, mask, C, True)
    g = load(grad, base + lanes, mask, C, True)
    stride = tl.where(mask, stride_of(g, smallest, share, STEEPEST), 0.0).to(C)
    lower, upper = box_at(bounds, base * 0 + first, size, channels, inner, EACH, BLOCK, C)
    return point, origin, stride, lower, upper


@triton.jit
def _left(
    x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, t,
    EACH: tl.constexpr, STEEPEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(what t leaves of a sample, how many elements fall with t, the largest length)."""
    left = tl.zeros([BLOCK], tl.float64)
    falling = tl.zeros([BLOCK], tl.int32)
    largest = tl.zeros([BLOCK], share.dtype)
    for first in range(0, size, BLOCK):
        point, origin, stride, lower, upper = _at(
            x_adv, grad, x, bounds, base, first, size, channels, inner, smallest, share, EACH,
            STEEPEST, BLOCK,
        )  # fmt: skip
        m, cap = length_and_cap(point - origin + stride, origin, lower, upper)
        each, falls = left_of(m, cap, t)
        left += each
        falling += falls
        largest = tl.where(m > largest, m, largest)
    return tl.sum(left), tl.sum(falling), tl.max(largest)


@triton.jit(do_not_specialize=(*NUMBERS, "rank"))
def step_l1_long(
    x_adv, grad, x, step_size, radius, bounds, units: tl.int32, rank: tl.int32,
    step_stride: tl.int32, radius_stride: tl.int32, channels: tl.int32, inner: tl.int32,
    UNIT: tl.constexpr, EACH: tl.constexpr, STEEPEST: tl.constexpr, LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a sample of units * UNIT elements; the rest as in step_l1."""
    C: tl.constexpr = step_size.dtype.element_ty
    size = units * UNIT
    sample = tl.program_id(0).to(tl.int64)
    base = sample * size
    share = tl.load(step_size + sample * step_stride)
    smallest = share * 0
    if STEEPEST:
        prefix = unsigned_bits(smallest)
        for i in range(0, (C.primitive_bitwidth - LOWEST) // 2):
            shift = C.primitive_bitwidth - 2 - 2 * i
            prefix = _chosen(grad, base, size, prefix, shift, rank, C, BLOCK)
        smallest = prefix.to(C, bitcast=True)
        moving = _moving(grad, base, size, smallest, C, BLOCK)
        share = (share.to(tl.float64) / tl.maximum(moving, 1)).to(C)
    room, r = room_of(tl.load(radius + sample * radius_stride), size)
    t = tl.zeros([], C)
    low = t
    left, falling, high = _left(
        x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, t, EACH, STEEPEST,
        BLOCK,
    )  # fmt: skip
    inside = left <= r * (1 - room)
    rounds = tl.where(inside, 0, 64)
    while rounds > 0:
        at, between = guess(t, low, high, left, falling, r * (1 - 2.5 * room))
        left, falling, _ = _left(
            x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, at, EACH,
            STEEPEST, BLOCK,
        )  # fmt: skip
        above = left > r * (1 - 2 * room)
        low = tl.where(between & above, at, low)
        high = tl.where(between & (above == 0), at, high)
        t = at
        enough = (above == 0) & (left >= r * (1 - 3 * room))
        rounds = tl.where(enough | (between == 0), 0, rounds - 1)
    t = tl.where(inside, tl.zeros([], C), high)
    for first in range(0, size, BLOCK):
        point, origin, stride, lower, upper = _at(
            x_adv, grad, x, bounds, base, first, size, channels, inner, smallest, share, EACH,
            STEEPEST, BLOCK,
        )  # fmt: skip
        new = placed(point, origin, stride, t, inside, lower, upper, x_adv.dtype.element_ty)
        lanes = first + tl.arange(0, BLOCK)
        tl.store(x_adv + base + lanes, new, mask=lanes < size)
