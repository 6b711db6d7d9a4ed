"""Dense stacks for dense_pgd_: its arguments, the op run in the emulator, and how far rounding may
move a gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fastadv.engine.reference_dense import dense_pgd_, pack, pack_bias
from fastadv.kernels import dense_launch, dense_plan
from fastadv.kernels.dense_plan import Device as Chip
from fastadv.kernels.dense_plan import Tile

DTYPES = {"bfloat16": 2.0**-9, "tf32": 2.0**-10}  # relative rounding of a product's factors
SIGMAS = 5


@dataclass
class Net:
    """Linear layers with ReLU (or a leak) between, and data to attack them on."""

    sizes: tuple[int, ...]
    samples: int
    dtype: str = "bfloat16"
    norm: int = 0
    leak: float = 0.0
    head: int = 0
    targeted: bool = False
    seed: int = 0
    weights: list[Tensor] = field(init=False, repr=False)
    biases: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        shapes = [(outs, ins) for ins, outs in pairwise(self.sizes)]
        self.weights = [torch.randn(shape, generator=g) * 1.5 / shape[1] ** 0.5 for shape in shapes]
        self.biases = [torch.randn(shape[0], generator=g) * 0.1 for shape in shapes]
        self.x = torch.rand(self.samples, self.sizes[0], generator=g)
        self.y = torch.randint(0, self.sizes[-1], (self.samples,), generator=g)
        if self.head in (1, 4):
            labels = torch.rand(self.samples, self.sizes[-1], generator=g)
            self.y = labels.round() if self.head == 1 else labels.softmax(1)
        self.target = (self.y + 1) % self.sizes[-1] if self.head == 3 and self.targeted else None
        self.radius = torch.linspace(0.02, 0.2, self.samples) * (1 if self.norm == 0 else 5)
        self.step_size = torch.tensor(0.03 if self.norm == 0 else 0.2)
        self.bounds: Tensor | None = torch.tensor([0.0, 0.95])
        self.x.clamp_(max=0.95)

    def stack(self) -> tuple[Any, ...]:
        narrow, last = self.dtype == "bfloat16", len(self.weights) - 1
        kind = 2 if self.leak else 1
        return (
            [pack(w, narrow) for w in self.weights],
            [],
            [pack_bias(b, w) for b, w in zip(self.biases, self.weights, strict=True)],
            list(self.sizes),
            [kind] * last + [0],
            [self.leak] * (last + 1),
        )

    def run(self, op: Callable[..., None], steps: int) -> tuple[Tensor, Tensor]:
        """(x_adv, seen)."""
        x_adv, seen = self.x.clone(), torch.zeros(self.samples)
        op(
            x_adv, seen, self.x, self.step_size, self.radius, self.bounds, self.norm, 0.1, steps,
            *self.stack(), self.y, self.target, self.head, self.targeted,
        )  # fmt: skip
        return x_adv, seen

    def expected(self, steps: int) -> tuple[Tensor, Tensor]:
        """What the op's definition gives: bfloat16 factors are rounded as in the kernel."""
        return self.run(dense_pgd_, steps)

    def emulated(self, steps: int) -> tuple[Tensor, Tensor]:
        return self.run(dense_launch.dense_pgd_, steps)


@contextmanager
def tile(chosen: Tile | None = None, chip: Chip | None = None) -> Any:
    """TF32 allowed; and one tile, or that of a chip, in place of the choice by an A100."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    with pytest.MonkeyPatch.context() as patch:
        if chosen is not None:
            patch.setattr(dense_plan, "tile_for", lambda *of: chosen)
        if chip is not None:
            patch.setattr(dense_launch, "device_of", lambda x: chip)
        try:
            yield
        finally:
            matmul.fp32_precision = before


def gradient(net: Net, x: Tensor) -> Tensor:
    """Autograd's, of the cross-entropy, in float64."""
    leaf = x.double().requires_grad_()
    z = leaf
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        z = (z.relu() if i else z) @ w.double().T + b.double()
    (grad,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(z, net.y, reduction="sum"), leaf
    )
    return grad


def _product(v: Tensor, variance: Tensor, matrix: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """(v @ matrix, its variance): a factor's rounding is uniform in +-rounding, relative."""
    squares = matrix.square()
    return v @ matrix, (variance + v.square() * (2 / 3 * rounding**2)) @ squares


def bound(net: Net, x: Tensor) -> Tensor:
    """(N, inputs): what the kernel's gradient of the cross-entropy is off float64's by, at SIGMAS.

    Rounding errors that are independent add up by their variances (Higham and Mary,
    doi:10.1137/18M1226312). A ReLU whose input may be on either side of 0 passes all or nothing.
    """
    rounding = DTYPES[net.dtype]
    matrices = [w.double() for w in net.weights]
    value, variance, before = x.double(), torch.zeros_like(x, dtype=torch.float64), []
    for i, (w, b) in enumerate(zip(matrices, net.biases, strict=True)):
        if i:
            before.append((value, variance))
            value = value.relu()
        value, variance = _product(value, variance, w.T, rounding)
        value = value + b
    p = value.softmax(1)
    grad = p - torch.nn.functional.one_hot(net.y, net.sizes[-1])
    variance = p.square() * (variance + (p.square() * variance).sum(1, keepdim=True))
    for w, (z, off) in zip(reversed(matrices[1:]), reversed(before), strict=True):
        grad, variance = _product(grad, variance, w, rounding)
        near = z.abs() <= SIGMAS * off.sqrt()
        variance = torch.where(near, grad.square() + variance, torch.where(z > 0, variance, 0))
        grad = torch.where(z > 0, grad, 0)
    return SIGMAS * _product(grad, variance, matrices[0], rounding)[1].sqrt()
