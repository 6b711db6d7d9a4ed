"""Balls: the sets that a perturbation may move in. Frozen values without tensors.

A ball is {x_adv : ||x_adv - x|| <= radius} together with the box lower <= x_adv <= upper. What
`project` and `sample` return lies in both exactly, for the numbers as stored, in every dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fastadv import ops
from fastadv.reference import compute_dtype, norm, rows

Bound = float | tuple[float, ...]
Bounds = tuple[Bound, Bound]


@dataclass(frozen=True)
class Ball:
    """{x_adv : ||x_adv - x|| <= radius, lower <= x_adv <= upper}.

    radius: in the units of x; inf is no ball. bounds: (lower, upper), each a number or one a
    channel (dimension 1 of x); None is no box.
    Raises ValueError for a negative or NaN radius and for bounds that no x can meet.
    """

    radius: float
    bounds: Bounds | None = (0.0, 1.0)
    order: ClassVar[str]
    exponent: ClassVar[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", _number(self.radius, "radius"))
        if not self.radius >= 0:
            raise ValueError(f"`radius` must be at least 0, got {self.radius}")
        if self.bounds is not None:
            object.__setattr__(self, "bounds", _bounds(self.bounds))

    def bounds_for(self, x: Tensor) -> Tensor | None:
        """The box for the kernels: (2,) or (2, C) in x's compute dtype, or None."""
        if self.bounds is None:
            return None
        self.check_channels(tuple(x.shape))
        tensor = _bounds_tensor if type(x) is Tensor else _bounds_tensor.__wrapped__
        return tensor(self.bounds, compute_dtype(x.dtype), x.device)

    def check_channels(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError where the bounds are given for other channels than data has."""
        lower = self.bounds[0] if self.bounds is not None else None
        if isinstance(lower, tuple) and (len(shape) < 2 or len(lower) != shape[1]):
            raise ValueError(
                f"`bounds` are given for {len(lower)} channels (dimension 1), "
                f"got data of shape {shape}"
            )

    def norm(self, delta: Tensor) -> Tensor:  # (N, *shape) -> (N,)
        """The norm of each sample, in float64."""
        return norm(delta, self.exponent)

    def project(
        self, x_adv: Tensor, x: Tensor, radius: float | Tensor | None = None
    ) -> Tensor:  # (N, *shape)
        """The projection of x_adv onto the ball around x and the box; `radius` () or (N,)."""
        return ops.project_(x_adv.detach().clone(), x.detach(), ball=self, radius=radius)

    def sample(
        self,
        x: Tensor,  # (N, *shape)
        seed: int,
        *,
        radius: float | Tensor | None = None,  # () or (N,)
        offset: int = 0,
        stream: int = 0,
    ) -> Tensor:
        """Uniform by volume in the ball around x, then into the box.

        A sample's point is a function of (seed, offset + its index, stream) alone.
        """
        x = x.detach()
        r = ops.per_sample(self.radius if radius is None else radius, x, "radius", round_down=True)
        require_finite(r)
        return self.start(x, r, seed, offset, stream)

    def start(self, x: Tensor, radius: Tensor, seed: int, offset: int, stream: int) -> Tensor:
        """`sample` for a radius that is known to be finite: it does not wait for the device."""
        delta = self._unit(x, seed, offset, 4 * stream) * rows(radius, x)
        return ops.project_((x + delta).to(x.dtype), x, ball=self, radius=radius)

    def _unit(self, x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
        """Uniform in the unit ball, shaped like x, in its compute dtype; streams to stream + 3."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linf(Ball):
    """max_i |x_adv_i - x_i| <= radius. `project` is the nearest point of ball and box together."""

    order: ClassVar[str] = "linf"
    exponent: ClassVar[float] = math.inf

    def _unit(self, x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
        return ops.uniform(x, seed, offset, stream) * 2 - 1


@dataclass(frozen=True)
class L2(Ball):
    """||x_adv - x||_2 <= radius. `project` scales into the ball, then clamps to the box: the result
    is feasible, but where both bind there may be a nearer point."""

    order: ClassVar[str] = "l2"
    exponent: ClassVar[float] = 2.0

    def _unit(self, x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
        # Box and Muller: 1 - u is in (0, 1], so the logarithm is finite.
        length = (-2 * torch.log1p(-ops.uniform(x, seed, offset, stream))).sqrt()
        direction = length * torch.cos(2 * math.pi * ops.uniform(x, seed, offset, stream + 1))
        u = ops.uniform(x.new_empty(len(x), 1), seed, offset, stream + 2)[:, 0]
        size = max(x[0].numel(), 1) if len(x) else 1
        norm = self.norm(direction).clamp(min=torch.finfo(direction.dtype).tiny)
        return direction * rows((u.double() ** (1 / size) / norm).to(direction.dtype), x)


@dataclass(frozen=True)
class L1(Ball):
    """sum_i |x_adv_i - x_i| <= radius. `project` is the nearest point of ball and box together
    (Croce and Hein, 2103.01208, proposition 2.1)."""

    order: ClassVar[str] = "l1"
    exponent: ClassVar[float] = 1.0

    def _unit(self, x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
        # Exponentials over their sum, one more than there are coordinates, are uniform in the
        # simplex; random signs make it the ball.
        magnitude = -torch.log1p(-ops.uniform(x, seed, offset, stream))
        sign = torch.where(ops.uniform(x, seed, offset, stream + 1) < 0.5, -1.0, 1.0)
        rest = -torch.log1p(-ops.uniform(x.new_empty(len(x), 1), seed, offset, stream + 2))[:, 0]
        total = self.norm(magnitude) + rest.double()
        return magnitude * sign * rows((1 / total).to(magnitude.dtype), x)


def require_finite(radius: Tensor) -> None:
    """Raises ValueError where a random start has no ball to be drawn from."""
    if not bool(torch.isfinite(radius).all()):
        raise ValueError("`radius` must be finite to start at random, got inf")


def require_ball(ball: object) -> Ball:
    """`ball` itself. Raises TypeError unless it is a Ball."""
    if not isinstance(ball, Ball):
        raise TypeError(f"`ball` must be a ball, as in fa.Linf(8 / 255), got {ball!r}")
    return ball


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}")
    return float(value)


def _bounds(bounds: object) -> Bounds:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"`bounds` must be (lower, upper) or None, got {bounds!r}")
    lower, upper = (_bound(bound) for bound in bounds)
    lowest = lower if isinstance(lower, tuple) else (lower,)
    highest = upper if isinstance(upper, tuple) else (upper,)
    size = max(len(lowest), len(highest))
    if len(lowest) not in (1, size) or len(highest) not in (1, size):
        raise ValueError(f"`bounds` must have as many lower as upper values, got {bounds!r}")
    pairs = zip(lowest * (size // len(lowest)), highest * (size // len(highest)), strict=True)
    if not all(low < high for low, high in pairs):
        raise ValueError(f"`bounds` must have lower < upper, got {bounds!r}")
    if size > 1 or isinstance(lower, tuple) or isinstance(upper, tuple):
        return lowest * (size // len(lowest)), highest * (size // len(highest))
    return lower, upper


def _bound(bound: object) -> Bound:
    if isinstance(bound, Tensor):
        bound = bound.flatten().tolist() if bound.dim() else bound.item()
    if isinstance(bound, (tuple, list)):
        return tuple(_number(value, "bounds") for value in bound)
    return _number(bound, "bounds")


@lru_cache(maxsize=64)
def _bounds_tensor(bounds: Bounds, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(bounds, dtype=dtype, device=device)
