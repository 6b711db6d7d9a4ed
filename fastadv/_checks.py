"""Errors that name the argument, what was expected and what came."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastadv.reference import compute_dtype

if TYPE_CHECKING:
    from fastadv.balls import Ball


def text(shape: torch.Size | tuple[int, ...]) -> str:
    """A shape as people write it: (64, 3, 32, 32)."""
    return str(tuple(shape))


def data(x: object, name: str) -> Tensor:
    """Raises unless x is a floating (N, *shape) tensor that can be attacked."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"`{name}` must be a dense tensor, got layout {x.layout}")
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(
            f"`{name}` must be float32, float64, bfloat16 or float16, got {str(x.dtype)[6:]}"
            + (": convert images with x.float() / 255" if not x.dtype.is_floating_point else "")
        )
    if x.dim() < 1:
        raise ValueError(f"`{name}` must be (N, *shape), got a scalar")
    return x


def like(t: object, name: str, other: Tensor, other_name: str) -> Tensor:
    """Raises unless t has the shape, dtype and device of `other`."""
    if not isinstance(t, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(t).__name__}")
    if t.shape != other.shape:
        raise ValueError(
            f"`{name}` must be {text(other.shape)} like `{other_name}`, got {text(t.shape)}"
        )
    if t.dtype != other.dtype:
        raise TypeError(
            f"`{name}` must be {str(other.dtype)[6:]} like `{other_name}`, got {str(t.dtype)[6:]}"
        )
    if t.device != other.device:
        raise ValueError(f"`{name}` must be on {other.device} like `{other_name}`, got {t.device}")
    return t


def length(value: float, name: str) -> None:
    """Raises where a step size or a radius given as a number is none: NaN, inf, below 0."""
    if name == "radius":
        if not value >= 0:
            raise ValueError(f"`radius` must be at least 0, got {value}")
    elif not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}")


def labels(y: object, name: str) -> Tensor | None:
    """y as an objective may save it for its backward. Raises unless it is a tensor or None."""
    if y is None:
        return None
    if not isinstance(y, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(y).__name__}")
    return y.detach().clone() if y.is_inference() else y


def mutable(t: Tensor, name: str) -> None:
    """Raises where an update in place would be lost or would corrupt a graph."""
    if t.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"`{name}` is updated in place and must not require grad here: use torch.no_grad(), "
            f"or `{name}.detach()`"
        )
    steps = zip(t.stride(), t.shape, strict=True)
    if t.numel() and any(step == 0 and size > 1 for step, size in steps):
        raise ValueError(f"`{name}` is updated in place and must not be expanded: call .clone()")


def inputs(x: Tensor, ball: Ball, radius: Tensor | None = None) -> None:
    """Raises where data or `radius` (None: the ball's own) would give a silently wrong answer.

    One pass over x; its extremes are compared as Python's numbers: as tensors they cost 1% of a
    step of a net for MNIST.
    """
    ball.check_channels(tuple(x.shape))
    if radius is not None and radius.numel() and not float(radius.min()) >= 0:
        raise ValueError("`radius` must be at least 0 for each sample, got a negative one or NaN")
    if not x.numel():
        return
    lower, upper = ball.bounds or (-math.inf, math.inf)
    lower, upper = (b if isinstance(b, tuple) else (b,) for b in (lower, upper))
    least, most = _extremes(x.detach(), channels=len(lower) > 1)
    if not all(map(math.isfinite, least + most)):  # NaN where any is
        raise ValueError("`x` must be finite, got NaN or inf")
    # Data normalised in float32 may miss its own bounds by a few roundings, and half precision by
    # one more of its own; such x are clamped. A side without a bound is no measure of the other.
    dtype = compute_dtype(x.dtype)
    eps = 8 * torch.finfo(dtype).eps
    eps += torch.finfo(x.dtype).eps / 2 if x.dtype != dtype else 0
    for lowest, highest, low, high in zip(least, most, lower, upper, strict=True):
        room = eps * max(abs(end) if math.isfinite(end) else 0.0 for end in (low, high))
        if lowest < low - room or highest > high + room:
            raise ValueError(
                f"`x` must lie within the ball's bounds {list(map(_listed, ball.bounds or ()))}, "
                f"got values from {min(least):.4g} to {max(most):.4g}: scale x, or give the ball "
                "its bounds"
            )


def _listed(bound: float | tuple[float, ...]) -> float | list[float]:
    return list(bound) if isinstance(bound, tuple) else bound


def _extremes(x: Tensor, channels: bool) -> tuple[list[float], list[float]]:
    """x's least and largest numbers, or those of each channel (dimension 1)."""
    if not channels:
        least, most = x.aminmax()
        return [float(least)], [float(most)]
    others = [dim for dim in range(x.dim()) if dim != 1]
    return x.amin(others).tolist(), x.amax(others).tolist()


def binding(order: str, radius: Tensor, bounds: Tensor | None) -> None:
    """Warns where no sample's linf radius can bind within the box: 8 where 8 / 255 was meant."""
    if order != "linf" or bounds is None or not radius.numel():
        return
    least, width = float(radius.min()), float((bounds[1] - bounds[0]).max())
    if width < least < math.inf:
        warnings.warn(
            f"`radius` {least:.6g} exceeds the width {width:.6g} of the bounds, so that only these "
            f"bind: was {least:.6g} / 255 meant?",
            stacklevel=4,
        )
