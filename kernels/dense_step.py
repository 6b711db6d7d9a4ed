"""The input's part of a step: its gradient, the move, and the next step's first products."""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.arithmetic import magnitude, project_linf, sign
from fastadv.kernels.dense_layers import weights_of
from fastadv.kernels.step_l2 import placed, scale_of, step_of, unit_of


@triton.jit
def first_products(
    x_adv, weights, local, live, STACK: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr,
    STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """x_adv times the first layer's matrix: later steps get it from the step before."""
    WIDTH: tl.constexpr = STACK.widths[0]
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in tl.range(0, STACK.inputs, PIECE, num_stages=STAGES):
        columns = first + tl.arange(0, PIECE)
        mask = live[:, None] & (columns < STACK.inputs)[None, :]
        v = tl.load(x_adv + (local[:, None] * STACK.inputs + columns[None, :]), mask, other=0.0)
        w = weights_of(weights, first, 0, 0, PIECE, STACK)
        acc = tl.dot(v.to(w.dtype), w, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def step_linf(
    grad, x_adv, x, size, radius, box, weights, local, live, twist, STACK: tl.constexpr,
    ROWS: tl.constexpr, PIECE: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The linf step of x_adv, and the next step's first products; (ROWS,) is NaN where a gradient
    is no number."""
    WIDTH: tl.constexpr = STACK.widths[0]
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    rest = tl.zeros([ROWS, PIECE], tl.float32)  # g - g: 0, or NaN
    for first in tl.range(0, STACK.inputs, PIECE, num_stages=STAGES):
        w = weights_of(weights, first, twist, 0, PIECE, STACK)
        g = tl.dot(grad, tl.trans(w), input_precision=PRODUCTS)
        rest += g - g
        columns = first + tl.arange(0, PIECE)
        within = columns < STACK.inputs
        mask = live[:, None] & within[None, :]
        at = local[:, None] * STACK.inputs + columns[None, :]
        v = tl.load(x_adv + at, mask, other=0.0)
        origin = tl.load(x + at, mask, other=0.0)
        lower = tl.load(box + columns, within, other=0.0)[None, :]
        upper = tl.load(box + STACK.inputs + columns, within, other=0.0)[None, :]
        moved = v + size[:, None] * sign(g)
        placed = project_linf(moved, origin, radius[:, None], lower, upper, tl.float32)
        tl.store(x_adv + at, placed, mask)
        acc = tl.dot(placed.to(w.dtype), w, acc, input_precision=PRODUCTS)
    return acc, tl.sum(rest, 1)


@triton.jit
def _gradients(
    grad, grads, weights, local, twist, STACK: tl.constexpr, ROWS: tl.constexpr,
    PIECE: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """grads <- the gradient by the input; (ROWS,) is NaN where it is no number."""
    rest = tl.zeros([ROWS, PIECE], tl.float32)
    for first in tl.range(0, STACK.inputs, PIECE, num_stages=STAGES):
        w = weights_of(weights, first, twist, 0, PIECE, STACK)
        g = tl.dot(grad, tl.trans(w), input_precision=PRODUCTS)
        rest += g - g
        at = local[:, None] * STACK.rows[0] + (first + tl.arange(0, PIECE))[None, :]
        tl.store(grads + at, g)
    return tl.sum(rest, 1)


@triton.jit
def _length(grads, unit, local, STACK: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr):
    """((ROWS,) ||grad / unit||, max |grad|): of each row, in float64."""
    squares = tl.zeros([ROWS], tl.float64)
    largest = tl.zeros([ROWS], tl.float32)
    for first in tl.range(0, STACK.inputs, PIECE):
        at = local[:, None] * STACK.rows[0] + (first + tl.arange(0, PIECE))[None, :]
        g = tl.load(grads + at)
        largest = tl.maximum(largest, tl.max(magnitude(g), 1))
        wide = (g / unit[:, None]).to(tl.float64)
        squares += tl.sum(wide * wide, 1)
    return tl.sqrt(squares), largest


@triton.jit
def _at(x_adv, x, grads, first, local, live, STACK: tl.constexpr, PIECE: tl.constexpr):
    """A piece of (x_adv, x, the gradient), where it stands, and its mask."""
    columns = first + tl.arange(0, PIECE)
    mask = live[:, None] & (columns < STACK.inputs)[None, :]
    at = local[:, None] * STACK.inputs + columns[None, :]
    point = tl.load(x_adv + at, mask, other=0.0)
    origin = tl.load(x + at, mask, other=0.0)
    g = tl.load(grads + (local[:, None] * STACK.rows[0] + columns[None, :]))
    return point, origin, g, at, mask


@triton.jit
def _moved_length(
    x_adv, x, grads, unit, stride, local, live, STACK: tl.constexpr, ROWS: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """(ROWS,): ||x_adv - x + stride * grad / unit||^2."""
    squares = tl.zeros([ROWS], tl.float64)
    for first in tl.range(0, STACK.inputs, PIECE):
        point, origin, g, _, _ = _at(x_adv, x, grads, first, local, live, STACK, PIECE)
        v = (point - origin + stride[:, None] * (g / unit[:, None])).to(tl.float64)
        squares += tl.sum(v * v, 1)
    return squares


@triton.jit
def step_l2(
    grad, x_adv, x, size, radius, box, weights, grads, local, live, twist, STACK: tl.constexpr,
    ROWS: tl.constexpr, PIECE: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """As step_linf, in l2. A step needs two lengths before it moves: the gradient goes through
    `grads`, (programs * ROWS, padded inputs), 16 B an element more, and x and x_adv are read twice.
    """
    rest = _gradients(grad, grads, weights, local, twist, STACK, ROWS, PIECE, STAGES, PRODUCTS)
    tl.debug_barrier()
    unit = tl.full([ROWS], 1.0, tl.float32)
    length, largest = _length(grads, unit, local, STACK, ROWS, PIECE)
    unit = unit_of(length, largest, True)
    if tl.max(tl.where(unit != 1, 1, 0)) > 0:  # squares that leave the numbers
        length, _ = _length(grads, unit, local, STACK, ROWS, PIECE)
    stride = step_of(length, size, unit, True)
    squares = _moved_length(x_adv, x, grads, unit, stride, local, live, STACK, ROWS, PIECE)
    scale, outside = scale_of(squares, radius, tl.full([ROWS], STACK.inputs, tl.int32))
    tl.debug_barrier()  # no x_adv is moved before all have read theirs
    WIDTH: tl.constexpr = STACK.widths[0]
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in tl.range(0, STACK.inputs, PIECE, num_stages=STAGES):
        w = weights_of(weights, first, twist, 0, PIECE, STACK)
        point, origin, g, at, mask = _at(x_adv, x, grads, first, local, live, STACK, PIECE)
        columns = first + tl.arange(0, PIECE)
        within = columns < STACK.inputs
        lower = tl.load(box + columns, within, other=0.0)[None, :]
        upper = tl.load(box + STACK.inputs + columns, within, other=0.0)[None, :]
        move = stride[:, None] * (g / unit[:, None])
        moved = placed(
            point, origin, move, scale[:, None], outside[:, None], lower, upper, tl.float32
        )
        tl.store(x_adv + at, moved, mask)
        acc = tl.dot(moved.to(w.dtype), w, acc, input_precision=PRODUCTS)
    return acc, rest
