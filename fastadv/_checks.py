"""Errors that name the argument, what was expected and what came."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor


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


def inputs(x: Tensor, radius: Tensor, bounds: Tensor | None) -> None:
    """Raises where the data or the radius of an attack would give a silently wrong answer.

    One pass over x, and one wait for a device.
    """
    faults = [(~(radius >= 0)).any()]
    if x.numel():
        least, most = _extent(x.detach(), bounds)
        faults.append(~(torch.isfinite(least) & torch.isfinite(most)).all())
        if bounds is not None:
            faults.append(_outside(x, least, most, bounds))
    wrong = torch.stack(faults).tolist()
    if wrong[0]:
        raise ValueError("`radius` must be at least 0 for each sample, got a negative one or NaN")
    if any(wrong[1:2]):
        raise ValueError("`x` must be finite, got NaN or inf")
    if any(wrong):
        assert bounds is not None
        raise ValueError(
            f"`x` must lie within the ball's bounds {bounds.tolist()}, got values from "
            f"{float(x.min()):.4g} to {float(x.max()):.4g}: scale x, or give the ball its bounds"
        )


def _extent(x: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """x's least and largest number, of each channel where the bounds are; NaN where any is."""
    if bounds is None or bounds.dim() < 2:
        least, most = x.aminmax()
        return least, most
    others = [dim for dim in range(x.dim()) if dim != 1]
    return x.amin(others), x.amax(others)


def _outside(x: Tensor, least: Tensor, most: Tensor, bounds: Tensor) -> Tensor:  # ()
    lower, upper = bounds
    # Data normalised in float32 may miss its own bounds by a few roundings, and half precision by
    # one more of its own; such x are clamped. A side without a bound is no measure of the other.
    eps = 8 * torch.finfo(lower.dtype).eps
    eps += torch.finfo(x.dtype).eps / 2 if x.dtype != lower.dtype else 0
    room = eps * torch.maximum(_finite(lower.abs()), _finite(upper.abs()))
    return ((least < lower - room) | (most > upper + room)).any()


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


def _finite(t: Tensor) -> Tensor:
    return torch.where(torch.isfinite(t), t, 0)
