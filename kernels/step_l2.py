"""x_adv <- x + min(1, radius / ||v||) v, v = x_adv - x + step_size * grad / ||grad||; then the box.

Samples of up to 4096 elements stay in one program's registers: 12 B read and 4 B written an element
in float32, in one launch. Longer ones take a pass for three sums, ||d||^2, <d, grad> and ||grad||^2
with d = x_adv - x, from which ||v|| follows, and a pass that writes: 28 B. Where the samples alone
do not fill a device the first pass is a launch of its own (`moments_l2`), split over programs.

Sums run in float64, in an order that the shapes fix. Gradients whose squares leave the numbers are
taken in units of their largest element; a v that d and the step nearly cancel to, which the sums
cannot tell, is measured: both cost passes, and no attack's own step meets them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import add_towards, magnitude, place_towards
from fastadv.kernels.layout import box_at, load

NUMBERS = ("units", "step_stride", "radius_stride", "channels", "inner")


@triton.jit
def unit_of(length, largest, STEEPEST: tl.constexpr):
    """What the gradient is divided by: 1, but where its length is no number or no divisor."""
    if largest.dtype == tl.float64:
        beyond = length >= 1e150
        least = 1e-150
    else:
        beyond = length == float("inf")
        least = 1e-30
    if STEEPEST:
        beyond = beyond | (length <= least)
    usable = beyond & (largest > 0) & (largest < float("inf"))
    return tl.where(usable, largest, 1).to(largest.dtype)


@triton.jit
def step_of(length, step_size, unit, STEEPEST: tl.constexpr):
    """What the gradient, in units, is multiplied by; neither it nor the step leaves the numbers."""
    step = step_size.to(tl.float64)
    if STEEPEST:
        step = tl.where(length > 0, step / length, 0.0)
    else:
        step = step * unit + 0 * length
    if unit.dtype == tl.float64:
        most = 1.7976931348623157e308
        longest = 1e150
    else:
        most = 3.4028234663852886e38
        longest = 3.4028234663852886e38 * 2.0**-40
    step = tl.where(step * length > longest, longest / length, step)
    return tl.where(step > most, most, step).to(unit.dtype)


@triton.jit
def room_of(radius, size):
    """(reference.slack: the relative room that is kept below the radius, the radius in float64)."""
    if radius.dtype == tl.float64:
        rounding = 2.0**-53
    else:
        rounding = 2.0**-24
    return 16 * rounding + size.to(tl.float64) * 2.0**-53, radius.to(tl.float64)


@triton.jit
def scale_of(vv, radius, size):
    """(scale, outside): what leaves a v of ||v||^2 = vv in the ball, below it by some room."""
    room, r = room_of(radius, size)
    norm = tl.sqrt(vv)
    outside = norm > r * (1 - room)
    return tl.where(outside, r * (1 - 2 * room) / norm, 1.0).to(radius.dtype), outside


@triton.jit
def placed(point, origin, stride, scale, outside, lower, upper, T: tl.constexpr):
    """The new point; where nothing moves it is the old one: x + (x_adv - x) need not be x_adv."""
    moved = add_towards(origin, scale * (point - origin + stride))
    still = (stride == 0) & (outside == 0)
    return place_towards(tl.where(still, point, moved), origin, lower, upper, T)


@triton.jit(do_not_specialize=NUMBERS)
def step_l2(
    x_adv, grad, x, step_size, radius, bounds, units: tl.int32, step_stride: tl.int32,
    radius_stride: tl.int32, channels: tl.int32, inner: tl.int32, UNIT: tl.constexpr,
    EACH: tl.constexpr, STEEPEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a sample of units * UNIT <= BLOCK elements; with a UNIT of 16 all accesses are of
    128 bits."""
    C: tl.constexpr = step_size.dtype.element_ty
    size = units * UNIT
    sample = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    mask = lanes < size
    offsets = sample * size + lanes
    g = load(grad, offsets, mask, C, True)
    point = load(x_adv, offsets, mask, C, True)
    origin = load(x, offsets, mask, C, True)
    length = tl.sqrt(tl.sum(g.to(tl.float64) * g.to(tl.float64)))
    unit = unit_of(length, tl.max(magnitude(g)), STEEPEST)
    if unit != 1:
        g = g / unit
        length = tl.sqrt(tl.sum(g.to(tl.float64) * g.to(tl.float64)))
    stride = step_of(length, tl.load(step_size + sample * step_stride), unit, STEEPEST) * g
    v = (point - origin + stride).to(tl.float64)
    scale, outside = scale_of(tl.sum(v * v), tl.load(radius + sample * radius_stride), size)
    lower, upper = box_at(bounds, sample * 0, size, channels, inner, EACH, BLOCK, C)
    T: tl.constexpr = x_adv.dtype.element_ty
    new = placed(point, origin, stride, scale, outside, lower, upper, T)
    tl.store(x_adv + offsets, new, mask=mask)
