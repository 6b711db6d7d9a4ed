"""The l2 step of samples that no program's registers hold: see step_l2.py.

`moments_l2` writes each program's share of the sums, 32 B; `step_l2_long` adds a sample's shares in
their order, or makes the sums itself where it has a whole sample, and moves its share. 12 B read,
then 12 B read and 4 B written an element: 28 B in float32. It walks backwards, over what the first
pass left in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import magnitude
from fastadv.kernels.layout import box_at, load
from fastadv.kernels.step_l2 import NUMBERS, placed, scale_of, step_of, unit_of


@triton.jit
def _moments(x_adv, grad, x, base, begin, end, size, C: tl.constexpr, BLOCK: tl.constexpr):
    """(||d||^2, <d, grad>, ||grad||^2, max |grad|) of elements begin to end of a sample."""
    dd = tl.zeros([BLOCK], tl.float64)
    dg = tl.zeros([BLOCK], tl.float64)
    gg = tl.zeros([BLOCK], tl.float64)
    largest = tl.zeros([BLOCK], C)
    for first in range(begin, end, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        mask = lanes < size
        offsets = base + lanes
        g = load(grad, offsets, mask, C, True)
        d = load(x_adv, offsets, mask, C, True) - load(x, offsets, mask, C, True)
        most = magnitude(g)
        largest = tl.where(most > largest, most, largest)
        wide_g = g.to(tl.float64)
        wide_d = d.to(tl.float64)
        dd += wide_d * wide_d
        dg += wide_d * wide_g
        gg += wide_g * wide_g
    return tl.sum(dd), tl.sum(dg), tl.sum(gg), tl.max(largest)


@triton.jit
def _gradient(grad, offsets, mask, unit, C: tl.constexpr):
    g = load(grad, offsets, mask, C, True)
    if unit != 1:
        g = g / unit
    return g


@triton.jit
def _length_in_units(grad, base, size, unit, C: tl.constexpr, BLOCK: tl.constexpr):
    gg = tl.zeros([BLOCK], tl.float64)
    for first in range(0, size, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        g = _gradient(grad, base + lanes, lanes < size, unit, C).to(tl.float64)
        gg += g * g
    return tl.sqrt(tl.sum(gg))


@triton.jit
def _measured(x_adv, grad, x, base, size, unit, step, C: tl.constexpr, BLOCK: tl.constexpr):
    """||v||^2 by a pass over v."""
    vv = tl.zeros([BLOCK], tl.float64)
    for first in range(0, size, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        offsets = base + lanes
        mask = lanes < size
        d = load(x_adv, offsets, mask, C, True) - load(x, offsets, mask, C, True)
        v = (d + step * _gradient(grad, offsets, mask, unit, C)).to(tl.float64)
        vv += v * v
    return tl.sum(vv)


@triton.jit(do_not_specialize=("units", "share"))
def moments_l2(
    x_adv, grad, x, shares, units: tl.int32, share: tl.int32, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """shares: (N, programs, 4) float64. Program (i, j) has `share` tiles of BLOCK of sample i."""
    C: tl.constexpr = tl.float64 if x_adv.dtype.element_ty == tl.float64 else tl.float32
    size = units * UNIT
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    begin = part * share * BLOCK
    end = tl.minimum(begin + share * BLOCK, size)
    dd, dg, gg, largest = _moments(x_adv, grad, x, sample * size, begin, end, size, C, BLOCK)
    to = shares + (sample * tl.num_programs(1) + part) * 4
    tl.store(to, dd)
    tl.store(to + 1, dg)
    tl.store(to + 2, gg)
    tl.store(to + 3, largest.to(tl.float64))


@triton.jit
def _added(shares, sample, PARTS: tl.constexpr):
    """A sample's shares of the moments, added."""
    parts = tl.num_programs(1)
    each = tl.arange(0, PARTS)
    mask = each < parts
    at = shares + (sample * parts + each) * 4
    dd = tl.sum(tl.load(at, mask=mask, other=0))
    dg = tl.sum(tl.load(at + 1, mask=mask, other=0))
    gg = tl.sum(tl.load(at + 2, mask=mask, other=0))
    return dd, dg, gg, tl.max(tl.load(at + 3, mask=mask, other=0))


@triton.jit(do_not_specialize=(*NUMBERS, "share"))
def step_l2_long(
    x_adv, grad, x, step_size, radius, bounds, shares, units: tl.int32, share: tl.int32,
    step_stride: tl.int32, radius_stride: tl.int32, channels: tl.int32, inner: tl.int32,
    UNIT: tl.constexpr, EACH: tl.constexpr, STEEPEST: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (i, j) moves `share` tiles of sample i. shares: of moments_l2, of at most PARTS
    programs a sample; None: one program a sample makes the sums first.
    """
    C: tl.constexpr = step_size.dtype.element_ty
    size = units * UNIT
    sample = tl.program_id(0).to(tl.int64)
    base = sample * size
    if shares is None:
        dd, dg, gg, largest = _moments(x_adv, grad, x, base, 0, size, size, C, BLOCK)
    else:
        dd, dg, gg, largest = _added(shares, sample, PARTS)
    by_step = tl.load(step_size + sample * step_stride)
    length = tl.sqrt(gg)
    unit = unit_of(length, largest.to(C), STEEPEST)
    step = step_of(length, by_step, unit, STEEPEST)
    dot = step.to(tl.float64) * dg
    stride_squared = (step.to(tl.float64) * length) * (step.to(tl.float64) * length)
    vv = dd + 2 * dot + stride_squared
    part = tl.program_id(1)
    begin = part * share * BLOCK
    end = tl.minimum(begin + share * BLOCK, size)
    if (unit != 1) | ((dd > 0) & (vv <= 1e-3 * (dd + stride_squared))):
        # One program alone takes the sample: the others would read what it writes.
        begin = part * 0
        end = tl.where(part == 0, size, 0)
        length = _length_in_units(grad, base, end, unit, C, BLOCK)
        step = step_of(length, by_step, unit, STEEPEST)
        vv = _measured(x_adv, grad, x, base, end, unit, step, C, BLOCK)
    scale, outside = scale_of(vv, tl.load(radius + sample * radius_stride), size)
    tiles = tl.cdiv(end - begin, BLOCK)
    for i in range(0, tiles):
        first = begin + (tiles - 1 - i) * BLOCK
        lanes = first + tl.arange(0, BLOCK)
        mask = lanes < size
        offsets = base + lanes
        stride = step * _gradient(grad, offsets, mask, unit, C)
        point = load(x_adv, offsets, mask, C, True)
        origin = load(x, offsets, mask, C, True)
        lower, upper = box_at(bounds, base * 0 + first, size, channels, inner, EACH, BLOCK, C)
        new = placed(
            point, origin, stride, scale, outside, lower, upper, x_adv.dtype.element_ty
        )  # fmt: skip
        tl.store(x_adv + offsets, new, mask=mask)
