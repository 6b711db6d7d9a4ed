"""All steps of an attack on a stack of linear layers in one launch: forward, head, gradient, step,
and again. A program takes ROWS samples through all steps.

The outputs of layers 0, 2, 4, ... stay in registers; those of layers 1, 3, ... are walked through in
pieces of CHUNK that the next layer takes up at once, as attention does with its keys and values. The
input is walked through once a step: the gradient by a piece of it moves that piece of x_adv, which
enters the next step's first product while it and its weights are on the chip. So a linf step reads x
and x_adv once and writes x_adv once, 12 B an element, reads the first layer's weights once and those
of the layers between twice (from L2), and no gradient leaves the registers.

784-256-256-10 in bfloat16, 64 samples a program: 1.4 MB a step and program, half of what one tiled
product after the other moves (2.7 MB, with activations in memory).
"""

from __future__ import annotations

import triton
import triton.language as tl
from fastadv.kernels.arithmetic import project_linf, sign
from fastadv.kernels.dense_head import head_gradient


@triton.jit
def _weights(weights, first, twist, layer: tl.constexpr, COUNT: tl.constexpr, STACK: tl.constexpr):
    """(COUNT, width): rows of a layer's matrix from `first`."""
    WIDTH: tl.constexpr = STACK.widths[layer]
    rows = tl.arange(0, COUNT) ^ twist
    place = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(weights + (STACK.offsets[layer] + first * WIDTH) + place)


@triton.jit
def _activate(z, LEAK: tl.constexpr):
    """(activation(z), whether its slope is 1): ReLU is a leak of 0, no activation one of 1."""
    if LEAK == 0:
        up = (z > 0) | (z != z)
        return tl.where(up, z, 0.0), up
    else:
        up = z > 0
        return tl.where(up, z, z * LEAK), up


@triton.jit
def _through(grad, up, LEAK: tl.constexpr):
    """The gradient by an activation's input."""
    if LEAK == 0:
        return tl.where(up, grad, 0.0)
    else:
        return tl.where(up, grad, grad * LEAK)


@triton.jit
def _keep(signs, first, up, local, layer: tl.constexpr, COUNT: tl.constexpr, STACK: tl.constexpr):
    """Signs in the dtype of the weights: narrower ones make Triton cut the products' operands
    into smaller pieces."""
    if STACK.leaks[layer] != 1:
        place = local[:, None] * STACK.outputs + tl.arange(0, COUNT)[None, :]
        kept = tl.where(up, 1.0, 0.0).to(signs.dtype.element_ty)
        tl.store(signs + (STACK.places[layer] + first) + place, kept)


@triton.jit
def _back(signs, first, grad, local, layer: tl.constexpr, COUNT: tl.constexpr, STACK: tl.constexpr):
    """The gradient by a layer's products from that by its outputs."""
    if STACK.leaks[layer] != 1:
        place = local[:, None] * STACK.outputs + tl.arange(0, COUNT)[None, :]
        up = tl.load(signs + (STACK.places[layer] + first) + place) != 0
        grad = _through(grad, up, STACK.leaks[layer])
    return grad.to(signs.dtype.element_ty)


@triton.jit
def _outputs(
    acc, biases, signs, local, layer: tl.constexpr, STACK: tl.constexpr
):  # of a layer that stays in registers
    WIDTH: tl.constexpr = STACK.widths[layer]
    bias = tl.load(biases + STACK.places[layer] + tl.arange(0, WIDTH))
    value, up = _activate(acc + bias[None, :], STACK.leaks[layer])
    _keep(signs, 0, up, local, layer, WIDTH, STACK)
    return value.to(signs.dtype.element_ty)


@triton.jit
def _forward_pair(
    value, weights, biases, signs, local, twist, layer: tl.constexpr, STACK: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Through `layer` in pieces, and each piece into the products of the layer after it."""
    acc = tl.zeros([ROWS, STACK.widths[layer + 1]], tl.float32)
    for first in tl.range(0, STACK.rows[layer], CHUNK, num_stages=STAGES):
        w = _weights(weights, first, twist, layer, CHUNK, STACK)
        z = tl.dot(value, tl.trans(w), input_precision=PRODUCTS)
        z += tl.load(biases + STACK.places[layer] + first + tl.arange(0, CHUNK))[None, :]
        piece, up = _activate(z, STACK.leaks[layer])
        _keep(signs, first, up, local, layer, CHUNK, STACK)
        w_next = _weights(weights, first, twist, layer + 1, CHUNK, STACK)
        acc = tl.dot(piece.to(value.dtype), w_next, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def _backward_pair(
    grad, weights, signs, local, twist, layer: tl.constexpr, STACK: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The gradient by the outputs before `layer`, from that by the products of the layer after."""
    acc = tl.zeros([ROWS, STACK.widths[layer]], tl.float32)
    for first in tl.range(0, STACK.rows[layer], CHUNK, num_stages=STAGES):
        w_next = _weights(weights, first, twist, layer + 1, CHUNK, STACK)
        piece = tl.dot(grad, tl.trans(w_next), input_precision=PRODUCTS)
        piece = _back(signs, first, piece, local, layer, CHUNK, STACK)
        w = _weights(weights, first, twist, layer, CHUNK, STACK)
        acc = tl.dot(piece, w, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def _forward(
    acc, weights, biases, signs, local, twist, STACK: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """(ROWS, padded classes): the logits from the first layer's products."""
    LAST: tl.constexpr = len(STACK.rows) - 1
    for layer in tl.static_range(1, LAST, 2):
        value = _outputs(acc, biases, signs, local, layer - 1, STACK)
        acc = _forward_pair(
            value, weights, biases, signs, local, twist, layer, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
    if LAST % 2 == 1:
        value = _outputs(acc, biases, signs, local, LAST - 1, STACK)
        w = _weights(weights, 0, twist, LAST, STACK.rows[LAST], STACK)
        acc = tl.dot(value, tl.trans(w), input_precision=PRODUCTS)
        bias = tl.load(biases + STACK.places[LAST] + tl.arange(0, STACK.rows[LAST]))
    else:
        bias = tl.load(biases + STACK.places[LAST] + tl.arange(0, STACK.widths[LAST]))
    return acc + bias[None, :]


@triton.jit
def _backward(
    grad, weights, signs, local, twist, STACK: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The gradient by the first layer's products from that by the logits."""
    LAST: tl.constexpr = len(STACK.rows) - 1
    grad = grad.to(signs.dtype.element_ty)
    if LAST % 2 == 1:
        w = _weights(weights, 0, twist, LAST, STACK.rows[LAST], STACK)
        acc = tl.dot(grad, w, input_precision=PRODUCTS)
        grad = _back(signs, 0, acc, local, LAST - 1, STACK.widths[LAST], STACK)
    for layer in tl.static_range(LAST - 1 - LAST % 2, 0, -2):
        acc = _backward_pair(
            grad, weights, signs, local, twist, layer, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
        grad = _back(signs, 0, acc, local, layer - 1, STACK.widths[layer], STACK)
    return grad


@triton.jit
def _first_products(
    x_adv, weights, local, live, STACK: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr,
    STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """x_adv times the first layer's matrix: later steps get it from the step before."""
    acc = tl.zeros([ROWS, STACK.widths[0]], tl.float32)
    for first in tl.range(0, STACK.inputs, PIECE, num_stages=STAGES):
        columns = first + tl.arange(0, PIECE)
        mask = live[:, None] & (columns < STACK.inputs)[None, :]
        v = tl.load(x_adv + (local[:, None] * STACK.inputs + columns[None, :]), mask, other=0.0)
        w = _weights(weights, first, 0, 0, PIECE, STACK)
        acc = tl.dot(v.to(w.dtype), w, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def _step_linf(
    grad, x_adv, x, size, radius, box, weights, local, live, twist, STACK: tl.constexpr,
    ROWS: tl.constexpr, PIECE: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The linf step of x_adv, and the next step's first products; (ROWS,) is NaN where a gradient
    is no number."""
    acc = tl.zeros([ROWS, STACK.widths[0]], tl.float32)
    rest = tl.zeros([ROWS, PIECE], tl.float32)  # g - g: 0, or NaN
    for first in tl.range(0, STACK.inputs, PIECE, num_stages=STAGES):
        w = _weights(weights, first, twist, 0, PIECE, STACK)
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
def dense_pgd(
    x_adv, seen, x, step_size, radius, box, weights, biases, signs, y, target, samples, steps,
    step_stride, radius_stride, zero, STACK: tl.constexpr, HEAD: tl.constexpr,
    TARGETED: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """x_adv, x: (samples, inputs) float32; step_size, radius: of a sample, or stride 0; box: (2,
    inputs); weights, biases: as dense_plan.pack lays them out; signs: (programs * ROWS, outputs)
    to work in; seen: NaN where a loss or a gradient is no number.

    `zero` is 0, which the compiler cannot know: row numbers that are computed from `twist` are not
    kept in registers from one part of a step to the next, where they spilled (98 accesses).
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    x_adv += start * STACK.inputs
    x += start * STACK.inputs
    signs += start * STACK.outputs
    local = tl.arange(0, ROWS)
    live = start + local < samples
    acc = _first_products(x_adv, weights, local, live, STACK, ROWS, PIECE, STAGES, PRODUCTS)
    for k in range(steps):
        twist = k * zero
        local = tl.arange(0, ROWS) ^ twist
        z = _forward(
            acc, weights, biases, signs, local, twist, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
        live = start + local < samples
        grad, wrong = head_gradient(
            z, y, target, start + local, live, k == 0, STACK.classes, HEAD, TARGETED
        )
        tl.store(seen + start + local, float("nan"), live & wrong)
        tl.debug_barrier()  # signs are read by other threads than those that wrote them
        twist = (k + 1) * zero
        local = tl.arange(0, ROWS) ^ twist
        grad = _backward(
            grad, weights, signs, local, twist, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
        twist = (k + 2) * zero
        local = tl.arange(0, ROWS) ^ twist
        live = start + local < samples
        size = tl.load(step_size + (start + local) * step_stride, live, other=0.0)
        r = tl.load(radius + (start + local) * radius_stride, live, other=0.0)
        acc, rest = _step_linf(
            grad, x_adv, x, size, r, box, weights, local, live, twist, STACK, ROWS, PIECE, STAGES,
            PRODUCTS,
        )  # fmt: skip
        tl.store(seen + start + local, rest, live & (rest != rest))
        tl.debug_barrier()  # and so is x_adv
