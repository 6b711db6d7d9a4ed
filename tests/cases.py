"""Arguments of a step: layouts, dtypes, kinds of bounds, and the ends of arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.reference import compute_dtype

# Sizes around every register (4 to 16 lanes), one element, one sample, and more channels than the
# tile of bounds that a kernel keeps (1024).
SHAPES = (
    (4,), (1, 1), (3, 7), (2, 33), (1, 1, 1, 1), (5, 3, 4, 4), (2, 1, 3, 3), (3, 5, 1, 1),
    (2, 1025, 1, 2), (2, 3, 2, 3, 2), (1, 1025, 2),
)  # fmt: skip
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
BOUNDS = ("none", "one", "each")


@dataclass
class Case:
    """x_adv, grad, x, step_size, radius and bounds as the ops take them."""

    x_adv: Tensor
    grad: Tensor
    x: Tensor
    step_size: Tensor
    radius: Tensor
    bounds: Tensor | None

    def args(self) -> tuple[Tensor | None, ...]:
        """The arguments, with an x_adv that may be written on."""
        rest = (self.grad, self.x, self.step_size, self.radius, self.bounds)
        return (self.x_adv.clone(), *rest)

    def double(self) -> Case:
        """The same numbers in float64."""
        values = (self.x_adv, self.grad, self.x, self.step_size, self.radius)
        bounds = None if self.bounds is None else self.bounds.double()
        return Case(*(v.double() for v in values), bounds)

    def box(self) -> tuple[Tensor | float, Tensor | float]:
        """(lower, upper), broadcasting over x."""
        if self.bounds is None:
            return -torch.inf, torch.inf
        shape = (-1, *[1] * (self.x.dim() - 2)) if self.bounds.dim() == 2 else ()
        lower, upper = self.bounds
        return lower.reshape(shape), upper.reshape(shape)


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    bounds: str = "one",
    *,
    last: bool = False,
    seed: int = 0,
    per_sample: bool = True,
    radius: float = 0.3,
    step: float = 0.1,
) -> Case:
    """A point of the box, another some way off it, and a gradient with zeros and great ranges."""
    g = torch.Generator().manual_seed(seed)
    wide = compute_dtype(dtype)
    x = torch.rand(shape, generator=g).to(dtype)
    x_adv = (x.float() + 0.5 * torch.randn(shape, generator=g)).to(dtype)
    grad = torch.randn(shape, generator=g) * 10.0 ** torch.randint(-4, 4, shape, generator=g)
    grad = torch.where(torch.rand(shape, generator=g) < 0.2, 0.0, grad).to(dtype)
    if last:
        x_adv, grad, x = (t.contiguous(memory_format=FORMATS[t.dim()]) for t in (x_adv, grad, x))
    scale = 0.2 + torch.rand(shape[0], generator=g) if per_sample else torch.ones(())
    box = None if bounds == "none" else torch.tensor([0.0, 1.0], dtype=wide)
    if bounds == "each":
        channels = shape[1] if len(shape) > 1 else 0
        width = torch.rand(channels, generator=g)
        box = torch.stack([-0.1 * width, 1 + 0.1 * width]).to(wide)
    return Case(x_adv, grad, x, (step * scale).to(wide), (radius * scale).to(wide), box)


def all_cases(dtype: torch.dtype) -> list[Case]:
    """Every shape, bounds and memory format in one dtype."""
    found = []
    for shape in SHAPES:
        for bounds in BOUNDS if len(shape) > 1 else BOUNDS[:2]:
            for last in (False, True) if len(shape) in FORMATS else (False,):
                one = make(shape, dtype, bounds, last=last, per_sample=len(found) % 2 == 0)
                found.append(one)
    return found
