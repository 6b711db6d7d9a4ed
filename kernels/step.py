"""The launchers of the steps, with the signatures of torch.ops.fastadv.step_*_."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from fastadv.kernels import checks, tiles
from fastadv.kernels.checks import Layout
from fastadv.kernels.step_linf import step_linf
from torch import Tensor

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
