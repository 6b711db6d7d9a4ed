"""The correctness gate: what is wrong gets no figure."""

from __future__ import annotations

import torch
from torch import Tensor


class GateError(Exception):
    """A kernel's result is not its definition's."""


def equal(name: str, got: Tensor, expected: Tensor) -> None:
    """Raises GateError unless the bits are equal."""
    if not torch.equal(got, expected):
        worst = float((got.double() - expected.double()).abs().max())
        raise GateError(
            f"{name} differs from the reference, where bits must be equal: by {worst:.3g}"
        )


def close(name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises GateError unless every element is within `tolerance` of the expected one."""
    worst = float((got.double() - expected.double()).abs().max())
    if not worst <= tolerance:
        raise GateError(f"{name} differs from float64 by {worst:.3g}, allowed {tolerance:.3g}")


def inside(name: str, distance: Tensor, radius: float) -> None:
    """Raises GateError unless every distance is within the radius, exactly."""
    if not bool((distance <= radius).all()):
        raise GateError(f"{name} leaves the ball: {float(distance.max())!r} > {radius!r}")


def relative(name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises GateError unless the error's norm is at most `tolerance` of the expected one's."""
    share = float((got.double() - expected.double()).norm() / expected.double().norm())
    if not share <= tolerance:
        allowed = f"allowed {tolerance:.3g}"
        raise GateError(f"{name} differs from float64 by {share:.3g} of its norm, {allowed}")
