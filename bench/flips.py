"""Gradients against float64's, and what the two may differ in: units of a ReLU close to zero.

A number that float64 finds at 1e-8 another dtype may find at -1e-8. That one unit then passes its
gradient on, or does not, and a sample's gradient differs by 1e-3 with no arithmetic being wrong:
plain torch in float32 does the same. So a sample that is off is compared again, with the units
within NEAR of zero (of their layer's root mean square) on the side that fits best.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


class Sides(TorchFunctionMode):
    """ReLUs of which some units are on the other side; notes those that are near."""

    def __init__(self, flipped: set[Unit]) -> None:
        super().__init__()
        self.flipped, self.calls = flipped, 0
        self.near: list[tuple[float, Unit]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
    model: nn.Module, x: Tensor, y: Tensor, flipped: set[Unit]
) -> tuple[Tensor, list[Unit]]:
    with Sides(flipped) as sides:
        _, grad = gradient(model, x, y)
    return grad, [unit for _, unit in sorted(sides.near)]


def least_error(exact: nn.Module, x: Tensor, y: Tensor, found: Tensor, bound: float) -> float:
    """One sample's error, once float64 puts near units where `found` has them: greedily."""
    flipped: set[Unit] = set()
    grad, near = _with_sides(exact, x, y, flipped)
    least = float(error(found, grad))
    for unit in near:
        if least <= bound:
            break
        grad, _ = _with_sides(exact, x, y, flipped | {unit})
        if float(error(found, grad)) < least:
            least, flipped = float(error(found, grad)), flipped | {unit}
    return least


def assert_float64s(
    fast: nn.Module, plain: nn.Module, x: Tensor, y: Tensor, bound: float = 1e-4
) -> None:
    """Logits to 1e-5; gradients to 1e-5 in the median, and in every sample to `bound`."""
    exact = copy.deepcopy(plain).double()
    logits, grad = gradient(fast, x, y)
    exact_logits, exact_grad = gradient(exact, x.double(), y)
    assert grad.stride() == x.stride()
    assert float(error(logits, exact_logits).max()) <= 1e-5
    errors = error(grad, exact_grad).tolist()
    for i, found in enumerate(errors):
        if found > bound:
            one = slice(i, i + 1)
            errors[i] = least_error(exact, x[one].double(), y[one], grad[one], bound)
    assert max(errors) <= bound, errors
    assert sorted(errors)[len(errors) // 2] <= 1e-5, errors
