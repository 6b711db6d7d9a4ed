"""The l1 step of samples that no program's registers hold: see step_l1.py.

One program a sample reads it again in every round: 4 B an element in the 16 of the search for the
largest gradients (8 in bfloat16) and once more to count them, 12 B to find whether v lies in the
ball, in each round of Newton's (2 or 3 in an attack's steps), and to write: 120 to 132 B an element
in float32.
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


@triton.jit
def _smallest(grad, base, size, rank, LOWEST: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """The magnitude of rank `rank` of a sample, from the largest."""
    width: tl.constexpr = C.primitive_bitwidth
    prefix = unsigned_bits(tl.zeros([], C))
    for i in range(0, (width - LOWEST) // 2):
        prefix = _chosen(grad, base, size, prefix, width - 2 - 2 * i, rank, C, BLOCK)
    return prefix.to(C, bitcast=True)


@triton.jit
def _threshold(
    x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, r, room,
    EACH: tl.constexpr, STEEPEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(t, whether v lies in the ball as it is, and t is 0): t leaves a sum just under r."""
    at = tl.zeros([], share.dtype)
    low = at
    left, falling, high = _left(
        x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, at, EACH, STEEPEST,
        BLOCK,
    )  # fmt: skip
    inside = left <= r * (1 - room)
    rounds = tl.where(inside, 0, 64)
    while rounds > 0:
        at, between = guess(at, low, high, left, falling, r * (1 - 2.5 * room))
        left, falling, _ = _left(
            x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, at, EACH,
            STEEPEST, BLOCK,
        )  # fmt: skip
        above = left > r * (1 - 2 * room)
        low = tl.where(between & above, at, low)
        high = tl.where(between & (above == 0), at, high)
        enough = (above == 0) & (left >= r * (1 - 3 * room))
        rounds = tl.where(enough | (between == 0), 0, rounds - 1)
    return tl.where(inside, tl.zeros([], share.dtype), high), inside


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
        smallest = _smallest(grad, base, size, rank, LOWEST, C, BLOCK)
        moving = _moving(grad, base, size, smallest, C, BLOCK)
        share = (share.to(tl.float64) / tl.maximum(moving, 1)).to(C)
    room, r = room_of(tl.load(radius + sample * radius_stride), size)
    t, inside = _threshold(
        x_adv, grad, x, bounds, base, size, channels, inner, smallest, share, r, room, EACH,
        STEEPEST, BLOCK,
    )  # fmt: skip
    for first in range(0, size, BLOCK):
        point, origin, stride, lower, upper = _at(
            x_adv, grad, x, bounds, base, first, size, channels, inner, smallest, share, EACH,
            STEEPEST, BLOCK,
        )  # fmt: skip
        new = placed(point, origin, stride, t, inside, lower, upper, x_adv.dtype.element_ty)
        lanes = first + tl.arange(0, BLOCK)
        tl.store(x_adv + base + lanes, new, mask=lanes < size)
