"""x_adv <- the point nearest to v in {||. - x||_1 <= radius} and the box (Croce and Hein
2103.01208, proposition 2.1), v = x_adv + step_size * sign(grad) / m on the m largest |grad|
(SLIDE, Tramer and Boneh 1904.13000).

With u = v - x and cap_i the distance from x_i to the box on u_i's side, the projection is
sign(u_i) * min(max(|u_i| - t, 0), cap_i), and t >= 0 the root of a falling, piecewise linear
function, found by Newton's method inside a bracket. The m-th largest |grad| is found in its bits,
two of them a round.

Samples of up to 4096 elements stay in one program's registers, and a round is a sum over them: 12 B
read and 4 B written an element in float32. step_l1_long.py has the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import add_towards, clamp, magnitude, place_towards, sign, turn
from fastadv.kernels.layout import box_at, load
from fastadv.kernels.step_l2 import NUMBERS, room_of


@triton.jit
def unsigned_bits(m):
    """The bits of m >= 0, which are ordered as the numbers are; NaN above all."""
    if m.dtype == tl.float64:
        return m.to(tl.uint64, bitcast=True)
    else:
        return m.to(tl.uint32, bitcast=True)


@triton.jit
def reach(bits, prefix, shift):
    """Which of prefix + 1, 2, 3 << shift the bits reach, as three fields of 21 bits."""
    one = (bits >= (prefix | (prefix * 0 + 1 << shift))).to(tl.int64)
    two = (bits >= (prefix | (prefix * 0 + 2 << shift))).to(tl.int64)
    three = (bits >= (prefix | (prefix * 0 + 3 << shift))).to(tl.int64)
    return one + (two << 21) + (three << 42)


@triton.jit
def chosen(counts, prefix, shift, rank):
    """The largest of prefix + 0 to 3 << shift that `rank` bits reach."""
    one = (counts & 0x1FFFFF) >= rank
    two = (counts >> 21 & 0x1FFFFF) >= rank
    three = (counts >> 42) >= rank
    digit = one.to(tl.int32) + two.to(tl.int32) + three.to(tl.int32)
    return prefix | (digit.to(prefix.dtype) << shift)


@triton.jit
def stride_of(g, smallest, share, STEEPEST: tl.constexpr):
    """What an element moves: `share` along its sign if it is among the largest, or share * g."""
    if STEEPEST:
        m = magnitude(g)
        return tl.where((m >= smallest) & (m > 0), share * sign(g), 0.0).to(g.dtype)
    else:
        return share * g


@triton.jit
def length_and_cap(u, origin, lower, upper):
    """|u|, of the numbers, and how far the box lets it go. NaN passes."""
    m = magnitude(u)
    if u.dtype == tl.float64:
        most = 1.7976931348623157e308
    else:
        most = 3.4028234663852886e38
    cap = tl.where(u > 0, upper - origin, origin - lower)
    return tl.where(m > most, most, m).to(u.dtype), clamp(cap, tl.zeros_like(u), float("inf"))


@triton.jit
def left_of(m, cap, t):
    """(what the threshold t leaves of the lengths m, whether it still falls with t), an element."""
    beyond = m - t
    falling = (beyond > 0) & (beyond < cap)
    return clamp(beyond, tl.zeros_like(m), cap).to(tl.float64), falling.to(tl.int32)


@triton.jit
def guess(at, lower, upper, left, falling, target):
    """(Newton's next threshold, or the bracket's middle; whether it is between the ends)."""
    newton = (at + (left - target) / tl.maximum(falling, 1).to(tl.float64)).to(lower.dtype)
    middle = lower + (upper - lower) * 0.5
    good = (falling > 0) & (newton > lower) & (newton < upper)
    next_at = tl.where(good, newton, middle)
    return next_at, (next_at > lower) & (next_at < upper)


@triton.jit
def _smallest(g, rank, LOWEST: tl.constexpr):
    """The magnitude of rank `rank`, from the largest."""
    width: tl.constexpr = g.dtype.primitive_bitwidth
    bits = unsigned_bits(magnitude(g))
    prefix = tl.sum(bits * 0)
    for i in range(0, (width - LOWEST) // 2):
        shift = width - 2 - 2 * i
        prefix = chosen(tl.sum(reach(bits, prefix, shift)), prefix, shift, rank)
    return prefix.to(g.dtype, bitcast=True)


@triton.jit
def _threshold(m, cap, r, room):
    """(t, whether v lies in the ball as it is, and t is 0): t leaves a sum just under r."""
    zero = tl.max(m) * 0
    each, falls = left_of(m, cap, zero)
    left = tl.sum(each)
    falling = tl.sum(falls)
    inside = left <= r * (1 - room)
    at = zero
    low = zero
    high = tl.max(m)
    rounds = tl.where(inside, 0, 64)
    while rounds > 0:
        at, between = guess(at, low, high, left, falling, r * (1 - 2.5 * room))
        each, falls = left_of(m, cap, at)
        left = tl.sum(each)
        falling = tl.sum(falls)
        above = left > r * (1 - 2 * room)
        low = tl.where(between & above, at, low)
        high = tl.where(between & (above == 0), at, high)
        enough = (above == 0) & (left >= r * (1 - 3 * room))
        rounds = tl.where(enough | (between == 0), 0, rounds - 1)
    return tl.where(inside, zero, high), inside


@triton.jit
def placed(point, origin, stride, t, inside, lower, upper, T: tl.constexpr):
    """The new point; where nothing moves it is the old one: x + (x_adv - x) need not be x_adv."""
    u = point - origin + stride
    m, cap = length_and_cap(u, origin, lower, upper)
    moved = add_towards(origin, turn(clamp(m - t, tl.zeros_like(u), cap), u))
    still = (stride == 0) & (inside != 0)
    return place_towards(tl.where(still, point, moved), origin, lower, upper, T)


@triton.jit(do_not_specialize=(*NUMBERS, "rank"))
def step_l1(
    x_adv, grad, x, step_size, radius, bounds, units: tl.int32, rank: tl.int32,
    step_stride: tl.int32, radius_stride: tl.int32, channels: tl.int32, inner: tl.int32,
    UNIT: tl.constexpr, EACH: tl.constexpr, STEEPEST: tl.constexpr, LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a sample of units * UNIT <= BLOCK elements. rank: of the least |grad| that moves.

    LOWEST: bits at the low end that are zero in every |grad|, an even number.
    """
    C: tl.constexpr = step_size.dtype.element_ty
    size = units * UNIT
    sample = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    mask = lanes < size
    offsets = sample * size + lanes
    g = load(grad, offsets, mask, C, True)
    point = load(x_adv, offsets, mask, C, True)
    origin = load(x, offsets, mask, C, True)
    lower, upper = box_at(bounds, sample * 0, size, channels, inner, EACH, BLOCK, C)
    share = tl.load(step_size + sample * step_stride)
    smallest = share * 0
    if STEEPEST:
        smallest = _smallest(g, rank, LOWEST)
        moving = tl.sum(((magnitude(g) >= smallest) & (g != 0)).to(tl.int32))
        share = (share.to(tl.float64) / tl.maximum(moving, 1)).to(C)
    stride = stride_of(g, smallest, share, STEEPEST)
    m, cap = length_and_cap(point - origin + stride, origin, lower, upper)
    m = tl.where(mask, m, 0.0).to(C)
    room, r = room_of(tl.load(radius + sample * radius_stride), size)
    t, inside = _threshold(m, cap, r, room)
    new = placed(point, origin, stride, t, inside, lower, upper, x_adv.dtype.element_ty)
    tl.store(x_adv + offsets, new, mask=mask)
