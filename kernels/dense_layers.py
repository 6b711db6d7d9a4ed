"""Forward and backward through a stack's layers, of samples that stay in registers: see dense.py."""

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
        w = weights_of(weights, first, twist, layer, CHUNK, STACK)
        z = tl.dot(value, tl.trans(w), input_precision=PRODUCTS)
        z += tl.load(biases + STACK.places[layer] + first + tl.arange(0, CHUNK))[None, :]
        piece, up = _activate(z, STACK.leaks[layer])
        _keep(signs, first, up, local, layer, CHUNK, STACK)
        w_next = weights_of(weights, first, twist, layer + 1, CHUNK, STACK)
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
        w_next = weights_of(weights, first, twist, layer + 1, CHUNK, STACK)
        piece = tl.dot(grad, tl.trans(w_next), input_precision=PRODUCTS)
        piece = _back(signs, first, piece, local, layer, CHUNK, STACK)
        w = weights_of(weights, first, twist, layer, CHUNK, STACK)
        acc = tl.dot(piece, w, acc, input_precision=PRODUCTS)
    return acc


@triton.jit
def forward(
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
        w = weights_of(weights, 0, twist, LAST, STACK.rows[LAST], STACK)
        acc = tl.dot(value, tl.trans(w), input_precision=PRODUCTS)
        bias = tl.load(biases + STACK.places[LAST] + tl.arange(0, STACK.rows[LAST]))
    else:
        bias = tl.load(biases + STACK.places[LAST] + tl.arange(0, STACK.widths[LAST]))
    return acc + bias[None, :]


@triton.jit
def backward(
    grad, weights, signs, local, twist, STACK: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The gradient by the first layer's products from that by the logits."""
    LAST: tl.constexpr = len(STACK.rows) - 1
    grad = grad.to(signs.dtype.element_ty)
    if LAST % 2 == 1:
        w = weights_of(weights, 0, twist, LAST, STACK.rows[LAST], STACK)
        acc = tl.dot(grad, w, input_precision=PRODUCTS)
        grad = _back(signs, 0, acc, local, LAST - 1, STACK.widths[LAST], STACK)
    for layer in tl.static_range(LAST - 1 - LAST % 2, 0, -2):
        acc = _backward_pair(
            grad, weights, signs, local, twist, layer, STACK, ROWS, CHUNK, STAGES, PRODUCTS
        )
        grad = _back(signs, 0, acc, local, layer - 1, STACK.widths[layer], STACK)
    return grad
