"""All steps of an attack on a stack of linear layers in one launch: forward, head, gradient, step,
and again. A program takes ROWS samples through all steps.

The outputs of layers 0, 2, 4, ... stay in registers, where the next layer's products take them; the
layers 1, 3, ... are walked through in pieces of CHUNK outputs. The input is walked through once a
step: the gradient by a piece of it moves that piece of x_adv, which enters the next step's first
product while it and its weights are on the chip. So a linf step reads x and x_adv once and writes
x_adv once, 12 B an element, reads the first layer's weights once and those of the layers between
twice (from L2), and no gradient leaves the registers.

784-256-256-10 in bfloat16, 64 samples a program: 1.46 MB a step and program, as the PTX emulator
counts them. One tiled product after the other moves 3.05 MB.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastadv.kernels.dense_head import head_gradient
from fastadv.kernels.dense_layers import backward, forward
from fastadv.kernels.dense_step import first_products, step_l2, step_linf

NUMBERS = ("samples", "steps", "step_stride", "radius_stride", "zero")


@triton.jit(do_not_specialize=NUMBERS)
def dense_pgd(
    x_adv, seen, x, step_size, radius, box, weights, biases, kept, grads, y, target,
    samples: tl.int32, steps: tl.int32, step_stride: tl.int32, radius_stride: tl.int32,
    zero: tl.int32, STACK: tl.constexpr, NORM: tl.constexpr,
    HEAD: tl.constexpr, TARGETED: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """x_adv, x: (samples, inputs) float32; step_size, radius: of a sample, or stride 0; box: (2,
    inputs); weights, biases: as dense_plan.pack lays them out; kept: (programs * ROWS, outputs)
    to work in; seen: NaN where a loss or a gradient is no number.

    `zero` is 0, which the compiler cannot know: row numbers that are computed from `twist` are not
    kept in registers from one part of a step to the next, where they spilled (98 accesses).
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    x_adv += start * STACK.inputs
    x += start * STACK.inputs
    kept += start * STACK.outputs
    if NORM == 1:
        grads += start * STACK.rows[0]
    local = tl.arange(0, ROWS)
    live = start + local < samples
    acc = first_products(x_adv, weights, local, live, STACK, ROWS, PIECE, STAGES, PRODUCTS)
    for k in range(steps):
        twist = k * zero
        local = tl.arange(0, ROWS) ^ twist
        z = forward(acc, weights, biases, kept, local, twist, STACK, ROWS, CHUNK, STAGES, PRODUCTS)
        live = start + local < samples
        grad, wrong = head_gradient(
            z, y, target, start + local, live, k == 0, STACK.classes, HEAD, TARGETED
        )
        tl.store(seen + start + local, float("nan"), live & wrong)
        tl.debug_barrier()  # kept are read by other threads than those that wrote them
        twist = (k + 1) * zero
        local = tl.arange(0, ROWS) ^ twist
        grad = backward(grad, weights, kept, local, twist, STACK, ROWS, CHUNK, STAGES, PRODUCTS)
        twist = (k + 2) * zero
        local = tl.arange(0, ROWS) ^ twist
        live = start + local < samples
        size = tl.load(step_size + (start + local) * step_stride, live, other=0.0)
        r = tl.load(radius + (start + local) * radius_stride, live, other=0.0)
        if NORM == 0:
            acc, rest = step_linf(
                grad, x_adv, x, size, r, box, weights, local, live, twist, STACK, ROWS, PIECE,
                STAGES, PRODUCTS,
            )  # fmt: skip
        else:
            acc, rest = step_l2(
                grad, x_adv, x, size, r, box, weights, grads, local, live, twist, STACK, ROWS,
                PIECE, STAGES, PRODUCTS,
            )  # fmt: skip
        tl.store(seen + start + local, rest, live & (rest != rest))
        tl.debug_barrier()  # and so is x_adv
