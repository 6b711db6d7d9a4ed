"""x_adv <- clamp(x_adv + step_size * sign(grad), x - radius, x + radius), then the box.

One pass over all samples as one array: 12 B read and 4 B written an element in float32. Tiles are
whole, with 128-bit accesses, but the last, which is masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import project_linf, sign
from fastadv.kernels.layout import box_at, load, sample_values


@triton.jit
def _tile(
    x_adv, grad, x, step_size, step_stride, radius, radius_stride, bounds, start, total, size,
    channels, inner, PER_SAMPLE: tl.constexpr, EACH: tl.constexpr, STEEPEST: tl.constexpr,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = step_size.dtype.element_ty
    offsets = start + tl.arange(0, BLOCK)
    mask = offsets < total
    v = load(x_adv, offsets, mask, C, MASKED)
    g = load(grad, offsets, mask, C, MASKED)
    origin = load(x, offsets, mask, C, MASKED)
    step = sample_values(step_size, step_stride, start, total, size, PER_SAMPLE, BLOCK)
    r = sample_values(radius, radius_stride, start, total, size, PER_SAMPLE, BLOCK)
    lower, upper = box_at(bounds, start, size, channels, inner, EACH, BLOCK, C)
    if STEEPEST:
        g = sign(g)
    placed = project_linf(v + step * g, origin, r, lower, upper, x_adv.dtype.element_ty)
    if MASKED:
        tl.store(x_adv + offsets, placed, mask=mask)
    else:
        tl.store(x_adv + offsets, placed)


NUMBERS = ("total", "size", "step_stride", "radius_stride", "channels", "inner")


@triton.jit(do_not_specialize=NUMBERS)
def step_linf(
    x_adv, grad, x, step_size, radius, bounds, total: tl.int64, size: tl.int32,
    step_stride: tl.int32, radius_stride: tl.int32, channels: tl.int32, inner: tl.int32,
    PER_SAMPLE: tl.constexpr, EACH: tl.constexpr, STEEPEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_adv, grad, x: (total,) in memory order; x None is zero. `size` elements a sample."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= total:
        _tile(
            x_adv, grad, x, step_size, step_stride, radius, radius_stride, bounds, start, total,
            size, channels, inner, PER_SAMPLE, EACH, STEEPEST, False, BLOCK,
        )  # fmt: skip
    else:
        _tile(
            x_adv, grad, x, step_size, step_stride, radius, radius_stride, bounds, start, total,
            size, channels, inner, PER_SAMPLE, EACH, STEEPEST, True, BLOCK,
        )  # fmt: skip
