"""How far an op may stay from its definition in float64, and exact arithmetic for what may not."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tolerance(dtype: torch.dtype, size: int) -> float:
    """The relative error of an op that sums `size` numbers: the only one that tests allow.

    Sums run in float64, two roundings a term. An element is computed in float32 (float64 for
    float64): 64 roundings cover the arithmetic and the room that l2 and l1 keep below the radius
    (reference.slack takes 16, doubled). Half precision then stores it within one unit.
    """
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    stored = torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0.0
    return 64 * unit + 2 * size * 2.0**-53 + stored


def assert_near(got: Tensor, expected: Tensor, size: int, scale: float | None = None) -> None:
    """|got - expected| <= tolerance * scale (the largest expected number, or what is given)."""
    if not got.numel():
        assert got.shape == expected.shape
        return
    largest = float(expected.abs().max()) if scale is None else scale
    allowed = tolerance(got.dtype, size) * max(largest, torch.finfo(got.dtype).tiny)
    worst = float((got.double() - expected.double()).abs().max())
    assert worst <= allowed, f"off by {worst:.3g}, allowed {allowed:.3g}"


def exact_power(delta_of: Tensor, x: Tensor, order: str) -> Fraction:
    """max |d|, sum d^2 or sum |d| of one sample's d = delta_of - x, without any rounding."""
    pairs = zip(delta_of.flatten().tolist(), x.flatten().tolist(), strict=True)
    d = [abs(Fraction(a) - Fraction(b)) for a, b in pairs]
    if order == "linf":
        return max(d, default=Fraction(0))
    return sum((v * v for v in d) if order == "l2" else d, start=Fraction(0))


def assert_in_ball(x_adv: Tensor, x: Tensor, radius: float | Tensor, order: str) -> None:
    """||x_adv - x|| <= radius for every sample, exactly: no rounding and no tolerance."""
    radii = torch.as_tensor(radius, dtype=torch.float64).expand(len(x)).tolist()
    for i, r in enumerate(radii):
        limit = Fraction(r) ** 2 if order == "l2" else Fraction(r)
        power = exact_power(x_adv[i], x[i], order)
        assert power <= limit, f"sample {i} exceeds {r} by {float(power - limit):.3g}"


def assert_in_box(x_adv: Tensor, lower: Tensor | float, upper: Tensor | float) -> None:
    """lower <= x_adv <= upper; bounds that are tensors broadcast over x_adv."""
    v = x_adv.double()
    lower, upper = (torch.as_tensor(b).double() for b in (lower, upper))
    assert bool((v >= lower).all()), f"below the box by {float((lower - v).max()):.3g}"
    assert bool((v <= upper).all()), f"above the box by {float((v - upper).max()):.3g}"


def bits(t: Tensor) -> Tensor:
    """The bits of t, NaN and the sign of zero included."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return t.contiguous().view(kinds[t.element_size()])
