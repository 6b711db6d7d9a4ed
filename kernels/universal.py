"""The launchers of the universal steps, with the signatures of torch.ops.fastadv.universal_*_.

The sum over the batch (accumulate.py), then the step of one sample whose x is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from fastadv.kernels import checks, step, tiles
from fastadv.kernels.accumulate import accumulate, advance, combine
from fastadv.kernels.checks import Layout
from fastadv.reference import compute_dtype


def _check(delta: Tensor, velocity: Tensor | None, grads: Tensor, weights: Tensor | None) -> Layout:
    checks.floating(grads, "grads")
    layout = checks.layout_of(grads, "grads")
    wide = compute_dtype(grads.dtype)
    for name, t in (
        ("grads", grads),
        ("delta", delta),
        ("velocity", velocity),
        ("weights", weights),
    ):
        if t is not None and not t.is_contiguous():
            raise ValueError(f"`{name}` must be contiguous, got strides {t.stride()}")
    for name, t, dtype in (("delta", delta, grads.dtype), ("velocity", velocity, wide)):
        if t is None:
            continue
        if t.numel() != layout.size:
            raise ValueError(
                f"`{name}` must be one sample of `grads` {checks.shape(grads)}, "
                f"got {checks.shape(t)}"
            )
        checks.check_kind(t, name, dtype, grads)
        checks.check_apart(t, name, grads, "grads")
    if velocity is not None:
        checks.check_apart(velocity, "velocity", delta, "delta")
    if weights is not None:
        if weights.shape != (layout.samples,):
            raise ValueError(f"`weights` must be ({layout.samples},), got {checks.shape(weights)}")
        checks.check_kind(weights, "weights", wide, grads)
    return layout


def _direction(
    layout: Layout, velocity: Tensor | None, grads: Tensor, weights: Tensor | None,
    momentum: float, signs: bool,
) -> Tensor:  # fmt: skip
    """(size,) in the compute dtype: what the step follows; where there is a velocity, it."""
    size, unit = layout.size, tiles.unit(layout.size)
    batch = tiles.batch(layout.samples, size, grads.element_size())
    sums = torch.empty(batch.parts, size, dtype=torch.float64, device=grads.device)
    blocks = triton.cdiv(size, batch.tile.block)
    accumulate[(blocks, batch.parts)](
        grads, weights, sums, layout.samples, size // unit, batch.share, UNIT=unit, SIGNS=signs,
        BLOCK=batch.tile.block, **tiles.options(batch.tile.warps),
    )  # fmt: skip
    wide = compute_dtype(grads.dtype)
    direction = torch.empty(size, dtype=wide, device=grads.device)
    tile = tiles.elementwise(8)
    programs = triton.cdiv(size, tile.block)
    lengths = None
    if velocity is not None:
        lengths = torch.empty(programs, dtype=torch.float64, device=grads.device)
    combine[(programs,)](
        sums, direction, lengths, batch.parts, size // unit, UNIT=unit, BLOCK=tile.block,
        **tiles.options(tile.warps),
    )  # fmt: skip
    if velocity is None:
        return direction
    advance[(programs,)](
        velocity, direction, lengths, momentum, programs, size // unit, UNIT=unit,
        BLOCK=tile.block, **tiles.options(tile.warps),
    )  # fmt: skip
    return velocity


def _universal(
    move: Callable[..., None], delta: Tensor, velocity: Tensor | None, grads: Tensor,
    weights: Tensor | None, step_size: Tensor, radius: Tensor, momentum: float, signs: bool,
    *rule: Any,
) -> None:  # fmt: skip
    layout = _check(delta, velocity, grads, weights)
    checks.per_sample(step_size, "step_size", grads, 1)
    checks.per_sample(radius, "radius", grads, 1)
    if layout.size == 0:
        return
    with checks.current_device(grads):
        direction = _direction(layout, velocity, grads, weights, momentum, signs)
        one = Layout(1, layout.size, 1, 1)
        move(step.Step(delta, direction, None, step_size, radius, None, one), *rule)


def universal_linf_(
    delta: Tensor, velocity: Tensor | None, grads: Tensor, weights: Tensor | None,
    step_size: Tensor, radius: Tensor, momentum: float, signs: bool, steepest: bool,
) -> None:  # fmt: skip
    """delta <- the linf step (no box) along the sum over the batch of weights * grads."""
    rest = (step_size, radius, momentum, signs, steepest)
    _universal(step.linf, delta, velocity, grads, weights, *rest)


def universal_l2_(
    delta: Tensor, velocity: Tensor | None, grads: Tensor, weights: Tensor | None,
    step_size: Tensor, radius: Tensor, momentum: float, signs: bool, steepest: bool,
) -> None:  # fmt: skip
    """The same with the l2 step."""
    rest = (step_size, radius, momentum, signs, steepest)
    _universal(step.l2, delta, velocity, grads, weights, *rest)


def universal_l1_(
    delta: Tensor, velocity: Tensor | None, grads: Tensor, weights: Tensor | None,
    step_size: Tensor, radius: Tensor, momentum: float, signs: bool, steepest: bool, top: float,
) -> None:  # fmt: skip
    """The same with the l1 step."""
    rest = (step_size, radius, momentum, signs, steepest, top)
    _universal(step.l1, delta, velocity, grads, weights, *rest)
