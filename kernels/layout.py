"""Where an element stands: its sample, its channel, and the numbers that hold for them.

Tensors are walked in the order of memory, in tiles of BLOCK elements that may cross from a sample
or a channel into the next. Most tiles do not: then one number is loaded for all lanes, and no lane
divides.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sample_values(
    values, stride, start, total, size, PER_SAMPLE: tl.constexpr, BLOCK: tl.constexpr
):
    """(BLOCK,): of each element the number that its sample has in `values`, () or (N,)."""
    if PER_SAMPLE:
        first = start // size
        last = tl.minimum(start + BLOCK, total) - 1
        value = tl.full([BLOCK], 0, values.dtype.element_ty) + tl.load(values + first * stride)
        if last >= (first + 1) * size:
            lanes = tl.arange(0, BLOCK)
            within = (start - first * size).to(size.dtype) + lanes
            sample = first + within // size
            value = tl.load(values + sample * stride, mask=start + lanes < total, other=0)
        return value
    else:
        return tl.full([BLOCK], 0, values.dtype.element_ty) + tl.load(values)


@triton.jit
def channel_bounds(bounds, start, size, channels, inner, BLOCK: tl.constexpr):
    """(BLOCK,) each: of each element the ends of its channel's box, `bounds` (2, channels)."""
    first = (start % size).to(size.dtype)
    channel = first // inner % channels
    zeros = tl.full([BLOCK], 0, bounds.dtype.element_ty)
    lower = zeros + tl.load(bounds + channel)
    upper = zeros + tl.load(bounds + channels + channel)
    if first % inner + BLOCK > inner:
        each = (first + tl.arange(0, BLOCK)) % size // inner % channels
        lower = tl.load(bounds + each)
        upper = tl.load(bounds + channels + each)
    return lower, upper


@triton.jit
def box_at(
    bounds, start, size, channels, inner, EACH: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr
):
    """(BLOCK,) each: the ends of the box; infinite where `bounds` is None."""
    if bounds is None:
        ends = tl.full([BLOCK], float("inf"), C)
        return -ends, ends
    elif EACH:
        return channel_bounds(bounds, start, size, channels, inner, BLOCK)
    else:
        zeros = tl.full([BLOCK], 0, C)
        return zeros + tl.load(bounds), zeros + tl.load(bounds + 1)


@triton.jit
def load(pointer, offsets, mask, C: tl.constexpr, MASKED: tl.constexpr):
    """The numbers at `offsets` in C; zeros where the tile is MASKED and `mask` does not hold.

    A mask stops 128-bit accesses, unless it is known to change at multiples of 16 alone.
    """
    if pointer is None:
        return tl.zeros(offsets.shape, C)
    elif MASKED:
        return tl.load(pointer + offsets, mask=mask, other=0).to(C)
    else:
        return tl.load(pointer + offsets).to(C)
