"""Gradients against float64's, and what the two may differ in: units of a ReLU close to zero, and
numbers of a pooling that are equal but for rounding.

A number that float64 finds at 1e-8 another dtype may find at -1e-8. That one unit then passes its
gradient on, or does not, and a sample's gradient differs by 1e-3 with no arithmetic being wrong:
plain torch in float32 does the same. So a sample that is off is compared again, with the units
within NEAR of zero (of their layer's root mean square) on the side that fits best. Likewise a max
pooling over an even background, where float64 finds equal numbers, takes the engine's choice among
those within NEAR of the largest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastadv.engine import calls

NEAR = 2e-5
_RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6)
Unit = tuple[int, int]  # which call of a ReLU, and which number of it


def logits_of(y: Any) -> Tensor:
    y = y["logits"] if isinstance(y, dict) else y
    logits: Tensor = y[0] if isinstance(y, tuple) else y
    return logits


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and each sample's gradient of their cross-entropy. That is taken in float64: of
    a sample that a net is sure of, p - 1 is 1e-6, which float32 rounds by 5%."""
    leaf = x.clone().requires_grad_()
    logits = logits_of(model(leaf))
    (grad,) = torch.autograd.grad(F.cross_entropy(logits.double(), y, reduction="sum"), leaf)
    return logits.detach(), grad


def error(found: Tensor, exact: Tensor) -> Tensor:  # (N,), relative, in the 2-norm
    difference = (found.double() - exact).flatten(1).norm(dim=1)
    relative: Tensor = difference / exact.flatten(1).norm(dim=1)
    return relative


def errors(model: nn.Module, fast: nn.Module, x: Tensor, y: Tensor) -> Tensor:  # (N,)
    """Of each sample's gradient of `fast`, against the model's in float64."""
    exact = copy.deepcopy(model).double()
    return error(gradient(fast, x, y)[1], gradient(exact, x.double(), y)[1])


class _Pools:
    """Stands for the engine's ops, and keeps which tap each of its max poolings took."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops
        self.taken: list[Tensor] = []  # (N, C, H, W) each

    def __getattr__(self, name: str) -> Any:
        op = getattr(self.ops, name)
        if name != "max_pool_":
            return op

        def noted(y: Tensor, taken: Tensor, *args: Any) -> None:
            op(y, taken, *args)
            self.taken.append(taken[..., : y.shape[3]].permute(0, 3, 1, 2).long())

        return noted


@contextmanager
def pools() -> Iterator[list[Tensor]]:
    """What the engine's max poolings take meanwhile."""
    ops = calls._ops
    noting: Any = _Pools(ops)
    calls._ops = noting
    try:
        yield noting.taken
    finally:
        calls._ops = ops


def _pool(
    taken: Tensor, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, **_: Any
) -> Tensor:
    """The max pooling that takes `taken` (N, C, H, W) where that is near the largest."""
    kernel, step = _pair(kernel_size), _pair(stride or kernel_size)
    above, left = _pair(padding)
    inside = F.pad(x, (left, left, above, above), value=-torch.inf)
    windows = inside.unfold(2, kernel[0], step[0]).unfold(3, kernel[1], step[1]).flatten(4)
    most, largest = windows.max(4)
    there = windows.gather(4, taken[..., None])[..., 0]
    near = most - there <= NEAR * x.detach().square().mean().sqrt()
    return windows.gather(4, torch.where(near, taken, largest)[..., None])[..., 0]


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Sides(TorchFunctionMode):
    """ReLUs of which some units are on the other side, and poolings that take what others took;
    notes the units that are near."""

    def __init__(self, flipped: set[Unit], taken: list[Tensor]) -> None:
        super().__init__()
        self.flipped, self.calls = flipped, 0
        self.taken = list(taken)
        self.near: list[tuple[float, Unit]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.max_pool2d and self.taken:
            return _pool(self.taken.pop(0), *args, **kwargs or {})
        if func not in _RELUS:
            return func(*args, **kwargs or {})
        x, v = args[0], args[0].detach()
        top = 6.0 if func is F.relu6 else float("inf")
        distance = torch.minimum(v.abs(), (v - top).abs()).flatten() / v.square().mean().sqrt()
        near = (distance < NEAR).nonzero().flatten().tolist()
        self.near += [(float(distance[i]), (self.calls, i)) for i in near]
        passes = ~((v <= 0) | (v >= top))
        for call, i in self.flipped:
            if call == self.calls:
                passes.view(-1)[i] ^= True
        self.calls += 1
        return torch.where(passes, x, v.clamp(0, top))


def _with_sides(
    model: nn.Module, x: Tensor, y: Tensor, flipped: set[Unit], taken: list[Tensor]
) -> tuple[Tensor, list[Unit]]:
    with Sides(flipped, taken) as sides:
        _, grad = gradient(model, x, y)
    return grad, [unit for _, unit in sorted(sides.near)]


def least_error(
    exact: nn.Module, x: Tensor, y: Tensor, found: Tensor, bound: float, taken: list[Tensor]
) -> float:
    """One sample's error, once float64 pools what `found` did, and puts near units where it has
    them: greedily."""
    flipped: set[Unit] = set()
    grad, near = _with_sides(exact, x, y, flipped, taken)
    least = float(error(found, grad))
    for unit in near:
        if least <= bound:
            break
        grad, _ = _with_sides(exact, x, y, flipped | {unit}, taken)
        if float(error(found, grad)) < least:
            least, flipped = float(error(found, grad)), flipped | {unit}
    return least


def with_sides(
    fast: nn.Module, exact: nn.Module, x: Tensor, y: Tensor, bound: float
) -> tuple[Tensor, Tensor]:  # (N,), (N,)
    """Each sample's error, and the least where that is over the bound."""
    with pools() as taken:
        _, grad = gradient(fast, x, y)
    plain = error(grad, gradient(exact, x.double(), y)[1])
    fitted = plain.clone()
    for i in (plain > bound).nonzero().flatten().tolist():
        one = slice(i, i + 1)
        of_one = [t[one] for t in taken]
        fitted[i] = least_error(exact, x[one].double(), y[one], grad[one], bound, of_one)
    return plain, fitted


def assert_float64s(
    fast: nn.Module, plain: nn.Module, x: Tensor, y: Tensor, bound: float = 1e-4
) -> None:
    """Logits to 1e-5; gradients to 1e-5 in the median, and in every sample to `bound`."""
    exact = copy.deepcopy(plain).double()
    logits, grad = gradient(fast, x, y)
    assert grad.stride() == x.stride()
    assert float(error(logits, gradient(exact, x.double(), y)[0]).max()) <= 1e-5
    _, fitted = with_sides(fast, exact, x, y, bound)
    errors = sorted(fitted.tolist())
    assert errors[-1] <= bound, errors
    assert errors[len(errors) // 2] <= 1e-5, errors
