"""Forward and backward through a stack's layers, of samples in registers: see dense.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weights_of(
    weights, first, twist, layer: tl.constexpr, COUNT: tl.constexpr, STACK: tl.constexpr
):
    """(COUNT, width): rows of a layer's matrix from `first`."""
    WIDTH: tl.constexpr = STACK.widths[layer]
    rows = tl.arange(0, COUNT) ^ twist
    place = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(weights + (STACK.offsets[layer] + first * WIDTH) + place)


@triton.jit
def _activate(z, LEAK: tl.constexpr):
    """ReLU is a leak of 0, no activation one of 1."""
    if LEAK == 0:
        return tl.where(z <= 0, 0.0, z)
    else:
        return tl.where(z > 0, z, z * LEAK)


@triton.jit
def _places(local, first, layer: tl.constexpr, COUNT: tl.constexpr, STACK: tl.constexpr):
    """Of a layer's outputs from `first`, among those that are kept."""
    columns = STACK.places[layer] + first + tl.arange(0, COUNT)
    return local[:, None] * STACK.outputs + columns[None, :]


@triton.jit
def _back(kept, first, grad, local, layer: tl.constexpr, COUNT: tl.constexpr, STACK: tl.constexpr):
    """The gradient by a layer's products from that by its outputs."""
    LEAK: tl.constexpr = STACK.leaks[layer]
    if LEAK != 1:
        value = tl.load(kept + _places(local, first, layer, COUNT, STACK))
        if LEAK == 0:
            grad = tl.where(value <= 0, 0.0, grad)
        else:
            grad = tl.where(value > 0, grad, grad * LEAK)
    return grad.to(kept.dtype.element_ty)


@triton.jit
def _outputs(acc, biases, kept, local, layer: tl.constexpr, STACK: tl.constexpr):
    """Of a layer that stays in registers."""
    WIDTH: tl.constexpr = STACK.widths[layer]
    LEAK: tl.constexpr = STACK.leaks[layer]
    bias = tl.load(biases + STACK.places[layer] + tl.arange(0, WIDTH))
    value = _activate(acc + bias[None, :], LEAK).to(kept.dtype.element_ty)
    if LEAK != 1:
        tl.store(kept + _places(local, 0, layer, WIDTH, STACK), value)
    return value


@triton.jit
def _forward_pair(
    value, weights, biases, kept, local, twist, layer: tl.constexpr, STACK: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Through `layer` in pieces, and them through the products of the layer after it: in a loop of
    its own, since Triton gives chained products to all warps along the rows, of which there are too
    few: each would be computed twice."""
    LEAK: tl.constexpr = STACK.leaks[layer]
    WIDTH: tl.constexpr = STACK.widths[layer + 1]
    for first in tl.range(0, STACK.rows[layer], CHUNK, num_stages=STAGES):
        w = weights_of(weights, first, twist, layer, CHUNK, STACK)
        z = tl.dot(value, tl.trans(w), input_precision=PRODUCTS)
        z += tl.load(biases + STACK.places[layer] + first + tl.arange(0, CHUNK))[None, :]
        piece = _activate(z, LEAK).to(value.dtype)
        tl.store(kept + _places(local, first, layer, CHUNK, STACK), piece)
    tl.debug_barrier()  # what is kept is read by other threads than those that wrote it
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in tl.range(0, STACK.rows[layer], CHUNK, num_stages=STAGES):
        piece = tl.load(kept + _places(local, first, layer, CHUNK, STACK))
        w = weights_of(weights, first, twist, layer + 1, CHUNK, STACK)
        acc = tl.dot(piece, w, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def _backward_pair(
    grad, weights, kept, local, twist, layer: tl.constexpr, STACK: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The gradient by the outputs before `layer`, from that by the products of the layer after."""
    WIDTH: tl.constexpr = STACK.widths[layer]
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in tl.range(0, STACK.rows[layer], CHUNK, num_stages=STAGES):
        w_next = weights_of(weights, first, twist, layer + 1, CHUNK, STACK)
        piece = tl.dot(grad, tl.trans(w_next), input_precision=PRODUCTS)
        piece = _back(kept, first, piece, local, layer, CHUNK, STACK)
        w = weights_of(weights, first, twist, layer, CHUNK, STACK)
        acc = tl.dot(piece, w, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def forward(
    acc, weights, biases, kept, local, twist, STACK: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """(ROWS, padded classes): the logits from the first layer's products."""
    LAST: tl.constexpr = len(STACK.rows) - 1
    OUTPUTS: tl.constexpr = STACK.rows[LAST]
    WIDTH: tl.constexpr = STACK.widths[LAST]
    for layer in tl.static_range(1, LAST, 2):
        value = _outputs(acc, biases, kept, local, layer - 1, STACK)
        acc = _forward_pair(
            value, weights, biases, kept, local, twist, layer, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
    if LAST % 2 == 1:
        value = _outputs(acc, biases, kept, local, LAST - 1, STACK)
        w = weights_of(weights, 0, twist, LAST, OUTPUTS, STACK)
        acc = tl.dot(value, tl.trans(w), input_precision=PRODUCTS)
        bias = tl.load(biases + STACK.places[LAST] + tl.arange(0, OUTPUTS))
    else:
        bias = tl.load(biases + STACK.places[LAST] + tl.arange(0, WIDTH))
    return acc + bias[None, :]


@triton.jit
def backward(
    grad, weights, kept, local, twist, STACK: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The gradient by the first layer's products from that by the logits."""
    LAST: tl.constexpr = len(STACK.rows) - 1
    OUTPUTS: tl.constexpr = STACK.rows[LAST]
    WIDTH: tl.constexpr = STACK.widths[LAST]
    grad = grad.to(kept.dtype.element_ty)
    if LAST % 2 == 1:
        w = weights_of(weights, 0, twist, LAST, OUTPUTS, STACK)
        acc = tl.dot(grad, w, input_precision=PRODUCTS)
        grad = _back(kept, 0, acc, local, LAST - 1, WIDTH, STACK)
    for layer in tl.static_range(LAST - 1 - LAST % 2, 0, -2):
        acc = _backward_pair(
            grad, weights, kept, local, twist, layer, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
        grad = _back(kept, 0, acc, local, layer - 1, STACK.widths[layer], STACK)
    return grad
