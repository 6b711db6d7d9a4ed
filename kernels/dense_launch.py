"""The launcher of dense_pgd: torch.ops.fastadv.dense_pgd_ on CUDA."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from fastadv.engine.reference import PANEL
from fastadv.engine.reference_dense import NAMES, unpack
from fastadv.kernels import checks, dense_plan
from fastadv.kernels.dense import dense_pgd
from fastadv.kernels.dense_plan import Device, Stack, Tile

BALLS = ("linf", "l2", "l1")
HEADS = 5
LEAST_SHARED = 99 << 10  # the smallest tiles': Ampere's and later
LEAKS = {"none": 1.0, "relu": 0.0}  # leaky_relu has its own


def why_not(
    sizes: list[int], activations: list[int], leaks: list[float], norm: int, bfloat16: bool
) -> str | None:
    """Why the kernel does not take an attack on such a stack, or None."""
    if BALLS[norm] == "l1":
        return "its ball is l1, whose threshold needs all of a sample at once"
    others = [NAMES[a] for a in activations if NAMES[a] not in (*LEAKS, "leaky_relu")]
    if others:
        return f"its activation is {others[0]}, not ReLU"
    if min(leaks) < 0:
        return f"its leaky ReLU has a slope of {min(leaks)}, and signs would not tell its sides"
    if not bfloat16 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return (
            "its products are of float32 numbers, and TF32 is not allowed "
            "(torch.backends.cuda.matmul.fp32_precision = 'tf32')"
        )
    if torch.cuda.is_available() and not torch.version.hip:
        found: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
        if found.shared_memory_per_block_optin < LEAST_SHARED:
            return (
                f"a program needs {LEAST_SHARED} bytes of shared memory, more than the device has"
            )
    return dense_plan.why_not(tuple(sizes), 2 if bfloat16 else 4)


def pack(
    weights: list[Tensor], biases: list[Tensor], sizes: list[int], stack: Stack
) -> tuple[Tensor, Tensor]:
    """(weights, biases) in one buffer each, as `stack` says, from the panels that the op takes."""
    last = stack.offsets[-1] + stack.rows[-1] * stack.widths[-1]
    buffer = weights[0].new_zeros(last)
    row = biases[0].new_zeros(stack.outputs)
    for layer, (ins, outs) in enumerate(pairwise(sizes)):
        shape = stack.rows[layer], stack.widths[layer]
        matrix = buffer[stack.offsets[layer] :][: math.prod(shape)].view(shape)
        weight = unpack(weights[layer], outs, ins)
        if layer % 2 == 0:
            weight = weight.T
        matrix[: weight.shape[0], : weight.shape[1]] = weight
        row[stack.places[layer] :][:outs] = biases[layer][:outs]
    return buffer, row


def box_of(bounds: Tensor | None, x: Tensor) -> Tensor:
    """(2, elements of a sample)."""
    layout = checks.layout_of(x, "x_adv")
    ends = torch.full((2, layout.size), torch.inf, device=x.device)
    if bounds is None:
        ends[0] = -torch.inf
    else:
        channels = checks.box_of(bounds, layout, x)[1]
        ends.view(2, channels, -1)[:] = bounds.view(2, -1, 1)
    return ends


def _check(
    x_adv: Tensor, seen: Tensor, x: Tensor, weights: list[Tensor], biases: list[Tensor],
    sizes: list[int], y: Tensor, target: Tensor | None, head: int, targeted: bool,
) -> None:  # fmt: skip
    if x_adv.dtype != torch.float32 or not x_adv.is_contiguous() or x_adv.dim() == 0:
        raise TypeError("`x_adv` must be contiguous float32 with a batch dimension")
    checks.check_like(x, "x", x_adv, "x_adv")
    checks.check_apart(x_adv, "x_adv", x, "x")
    samples, classes = len(x_adv), sizes[-1]
    if samples and x_adv[0].numel() != sizes[0]:
        raise ValueError(f"`sizes` must begin with {x_adv[0].numel()} like x_adv, got {sizes[0]}")
    least = {2: 2, 3: 3 + targeted}.get(head, 1)
    if head not in range(HEADS) or classes < least:
        raise ValueError(f"`head` must be in [0, {HEADS}), with {least} classes, got {head}")
    dense = head in (1, 4)
    expected: list[tuple[Tensor, str, torch.dtype, tuple[int, ...]]] = []
    expected.append((seen, "seen", torch.float32, (samples,)))
    kind = torch.float32 if dense else torch.int64
    expected.append((y, "y", kind, (samples, classes) if dense else (samples,)))
    if head == 3 and targeted:
        if target is None:
            raise ValueError("`target` must be given for the targeted dlr")
        expected.append((target, "target", torch.int64, (samples,)))
    for layer, (ins, outs) in enumerate(pairwise(sizes)):
        depth = (-(-ins // 2), PANEL, 2) if weights[0].dtype == torch.bfloat16 else (ins, PANEL)
        panels = -(-outs // PANEL)
        expected.append((weights[layer], "weights", weights[0].dtype, (panels, *depth)))
        expected.append((biases[layer], "biases", torch.float32, (panels * PANEL,)))
    for t, name, dtype, shape in expected:
        checks.check_kind(t, name, dtype, x_adv)
        if t.shape != shape or not t.is_contiguous():
            raise ValueError(f"`{name}` must be contiguous {shape}, got {checks.shape(t)}")


def dense_pgd_(
    x_adv: Tensor, seen: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, norm: int, top: float, steps: int, weights: list[Tensor],
    gradients: list[Tensor], biases: list[Tensor], sizes: list[int], activations: list[int],
    leaks: list[float], y: Tensor, target: Tensor | None, head: int, targeted: bool,
) -> None:  # fmt: skip
    """All steps in one launch. Raises ValueError for what why_not() names. `gradients`, the CPU's
    second copy of the weights, is not read."""
    bfloat16 = weights[0].dtype == torch.bfloat16
    if why := why_not(sizes, activations, leaks, norm, bfloat16):
        raise ValueError(f"the stack must fit into the kernel: {why}")
    _check(x_adv, seen, x, weights, biases, sizes, y, target, head, targeted)
    if x_adv.numel() == 0 or steps == 0:
        return
    slopes = tuple(LEAKS.get(NAMES[a], k) for a, k in zip(activations, leaks, strict=True))
    size = weights[0].element_size()
    tile = dense_plan.tile_for(tuple(sizes), size, len(x_adv), device_of(x_adv))
    stack = dense_plan.lay_out(tuple(sizes), slopes, tile)
    with checks.current_device(x_adv):
        launch(
            x_adv, seen, x, step_size, radius, box_of(bounds, x),
            *pack(weights, biases, sizes, stack), y, target, steps, norm, head, targeted, stack,
            tile,
        )  # fmt: skip


def device_of(x: Tensor) -> Device:
    """The device that x is on; without one, an A100's numbers."""
    if not x.is_cuda:
        return Device(108, 166912, 80)
    found: Any = torch.cuda.get_device_properties(x.device)
    if torch.version.hip:  # 96 KiB on NVIDIA's are 36 there: operands of products stay in registers
        return Device(found.multi_processor_count, 96 << 10, 10 * found.major + found.minor)
    shared = found.shared_memory_per_block_optin
    return Device(found.multi_processor_count, shared, 10 * found.major + found.minor)


def launch(
    x_adv: Tensor, seen: Tensor, x: Tensor, step_size: Tensor, radius: Tensor, box: Tensor,
    weights: Tensor, biases: Tensor, y: Tensor, target: Tensor | None, steps: int, norm: int,
    head: int, targeted: bool, stack: Stack, tile: Tile, products: str = "tf32",
) -> None:  # fmt: skip
    """The kernel on packed weights, with what it works in: kept, and for l2 gradients."""
    samples = len(x_adv)
    programs = triton.cdiv(samples, tile.rows)
    rows = programs * tile.rows
    step_size, step_stride = checks.per_sample(step_size, "step_size", x_adv, samples)
    radius, radius_stride = checks.per_sample(radius, "radius", x_adv, samples)
    kept = weights.new_empty(rows, stack.outputs)
    grads = x.new_empty(rows, stack.rows[0]) if norm == 1 else None
    warps = tile.warps // 2 if torch.version.hip else tile.warps  # a wave has 64 threads
    options: dict[str, Any] = {"num_warps": warps, "num_stages": tile.stages}
    dense_pgd[(programs,)](
        x_adv, seen, x, step_size, radius, box, weights, biases, kept, grads, y,
        target if head == 3 and targeted else None, samples, steps, step_stride, radius_stride, 0,
        STACK=stack, NORM=norm, HEAD=head, TARGETED=targeted, ROWS=tile.rows, PIECE=tile.piece,
        CHUNK=tile.chunk, STAGES=tile.stages, PRODUCTS=products, enable_fp_fusion=False, **options,
    )  # fmt: skip
