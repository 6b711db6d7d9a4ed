"""The launchers of the steps, with the signatures of torch.ops.fastadv.step_*_."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from fastadv.kernels import checks, tiles
from fastadv.kernels.checks import Layout
from fastadv.kernels.step_l1 import step_l1
from fastadv.kernels.step_l1_long import step_l1_long
from fastadv.kernels.step_l2 import step_l2
from fastadv.kernels.step_l2_long import moments_l2, step_l2_long
from fastadv.kernels.step_linf import step_linf

EXACT = {"enable_fp_fusion": False}  # a fused multiply-add would change bits


@dataclass(frozen=True)
class Step:
    """One step's arguments, checked. x None is zero, and grad may be of the compute dtype."""

    x_adv: Tensor
    grad: Tensor
    x: Tensor | None
    step_size: Tensor
    radius: Tensor
    bounds: Tensor | None
    layout: Layout
    step_stride: int = 0
    radius_stride: int = 0
    channels: int = 1
    inner: int = 1

    @property
    def flags(self) -> dict[str, bool]:
        """What of the arguments is compiled in."""
        return {
            "PER_SAMPLE": self.step_stride != 0 or self.radius_stride != 0,
            "EACH": self.channels > 1,
        }

    @property
    def units(self) -> dict[str, int | bool]:
        """What is compiled into kernels that treat samples one by one."""
        return {"UNIT": tiles.unit(self.layout.size), "EACH": self.channels > 1}

    @property
    def of_a_sample(self) -> tuple[int, int, int, int, int]:
        """Their numbers: units of a sample, strides, channels."""
        units = self.layout.size // tiles.unit(self.layout.size)
        return units, self.step_stride, self.radius_stride, self.channels, self.inner


def _checked(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None,
) -> Step:  # fmt: skip
    checks.floating(x_adv, "x_adv")
    layout = checks.layout_of(x_adv, "x_adv")
    for name, t in (("grad", grad), ("x", x)):
        checks.check_like(t, name, x_adv, "x_adv")
        checks.check_apart(x_adv, "x_adv", t, name)
    step_size, step_stride = checks.per_sample(step_size, "step_size", x_adv, layout.samples)
    radius, radius_stride = checks.per_sample(radius, "radius", x_adv, layout.samples)
    bounds, channels, inner = checks.box_of(bounds, layout, x_adv)
    return Step(
        x_adv, grad, x, step_size, radius, bounds, layout, step_stride, radius_stride, channels,
        inner,
    )  # fmt: skip


def step_linf_(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, steepest: bool,
) -> None:  # fmt: skip
    """x_adv <- the nearest point to x_adv + step_size * sign(grad) in the ball and the box."""
    linf(_checked(x_adv, grad, x, step_size, radius, bounds), steepest)


def linf(s: Step, steepest: bool) -> None:
    """The linf step of checked arguments: one launch."""
    if s.layout.total == 0:
        return
    tile = tiles.elementwise(s.x_adv.element_size())
    with checks.current_device(s.x_adv):
        step_linf[(triton.cdiv(s.layout.total, tile.block),)](
            s.x_adv, s.grad, s.x, s.step_size, s.radius, s.bounds, s.layout.total, s.layout.size,
            s.step_stride, s.radius_stride, s.channels, s.inner,
            STEEPEST=steepest, BLOCK=tile.block, num_warps=tile.warps, **s.flags, **EXACT,
        )  # fmt: skip


def step_l2_(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, steepest: bool,
) -> None:  # fmt: skip
    """x_adv <- x + min(1, radius / ||v||) v, v = x_adv - x + step_size * grad / ||grad||."""
    l2(_checked(x_adv, grad, x, step_size, radius, bounds), steepest)


def l2(s: Step, steepest: bool) -> None:
    """The l2 step of checked arguments: one launch, two for few long samples."""
    if s.layout.total == 0:
        return
    with checks.current_device(s.x_adv):
        if s.layout.size <= tiles.HELD:
            tile = tiles.sample(s.layout.size, s.x_adv.element_size())
            step_l2[(s.layout.samples,)](
                s.x_adv, s.grad, s.x, s.step_size, s.radius, s.bounds, *s.of_a_sample,
                STEEPEST=steepest, BLOCK=tile.block, num_warps=tile.warps, **s.units, **EXACT,
            )  # fmt: skip
        else:
            _long_l2(s, steepest)


def _long_l2(s: Step, steepest: bool) -> None:
    walk = tiles.long_sample(s.layout.samples, s.layout.size, s.x_adv.element_size())
    grid, tile, shares = (s.layout.samples, walk.parts), walk.tile, None
    units, *rest = s.of_a_sample
    if walk.parts > 1:
        shares = torch.empty((*grid, 4), dtype=torch.float64, device=s.x_adv.device)
        moments_l2[grid](
            s.x_adv, s.grad, s.x, shares, units, walk.share, UNIT=s.units["UNIT"],
            BLOCK=tile.block, num_warps=tile.warps, **EXACT,
        )  # fmt: skip
    step_l2_long[grid](
        s.x_adv, s.grad, s.x, s.step_size, s.radius, s.bounds, shares, units, walk.share, *rest,
        STEEPEST=steepest, PARTS=tiles.PARTS, BLOCK=tile.block, num_warps=tile.warps, **s.units,
        **EXACT,
    )  # fmt: skip


def step_l1_(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, steepest: bool, top: float,
) -> None:  # fmt: skip
    """x_adv <- the nearest point to v in ball and box, v = x_adv + step_size * slide(grad)."""
    l1(_checked(x_adv, grad, x, step_size, radius, bounds), steepest, top)


def l1(s: Step, steepest: bool, top: float) -> None:
    """The l1 step of checked arguments: one launch, one program a sample."""
    if not 0 < top <= 1:
        raise ValueError(f"`top` must be in (0, 1], got {top}")
    if s.layout.total == 0:
        return
    samples, size = s.layout.samples, s.layout.size
    itemsize = s.x_adv.element_size()
    held = size <= tiles.HELD
    tile = tiles.sample(size, itemsize) if held else tiles.long_search(itemsize)
    kernel = step_l1 if held else step_l1_long
    units, *rest = s.of_a_sample
    with checks.current_device(s.x_adv):
        kernel[(samples,)](
            s.x_adv, s.grad, s.x, s.step_size, s.radius, s.bounds, units,
            tiles.rank(top, size), *rest, STEEPEST=steepest, LOWEST=tiles.LOWEST[s.grad.dtype],
            BLOCK=tile.block, num_warps=tile.warps, **s.units, **EXACT,
        )  # fmt: skip
