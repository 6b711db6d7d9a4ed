"""Penalised forms: max over delta of the mean loss, minus a weight times a norm of delta."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import ops
from fastadv.balls import L1

NORMS = ("l1", "l2", "squared l2", "linf")


@dataclass(frozen=True)
class Penalty:
    """weight * ||delta||, as a term of the mean loss that is maximised; a frozen value.

    norm: "l1", "l2", "squared l2" or "linf". sign: -1 takes it away, so that a smaller delta is
    sought; +1 adds it, which rewards a larger one (a penalty inside the max reads so when it is
    taken literally).
    With -1 each step ends in the proximal point of its step size, the d of least
    weight * size * ||d|| + ||d - delta||_2^2 / 2: l1 shrinks every coordinate, l2 the whole,
    squared l2 divides by 1 + 2 * size * weight, linf cuts the largest (Moreau, by the projection
    onto the l1 ball). With +1 there is no such point, and the step goes along the norm's gradient.

    Raises ValueError for values that are none.
    """

    norm: str
    weight: float
    sign: int = -1

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"`norm` must be one of {NORMS}, got {self.norm!r}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"`weight` must be finite and at least 0, got {self.weight}")
        if self.sign not in (-1, 1):
            raise ValueError(f"`sign` must be -1 or 1, got {self.sign}")

    def value(self, delta: Tensor) -> Tensor:
        """weight * ||delta||, ()."""
        flat = delta.flatten()
        if self.norm == "squared l2":
            return flat.square().sum() * self.weight
        order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[self.norm]
        length: Tensor = torch.linalg.vector_norm(flat, order)
        return length * self.weight

    def step_(self, delta: Tensor, size: float) -> None:
        """A step of `size` on the penalty alone, in place."""
        by = size * self.weight
        if self.sign > 0:
            delta.add_(size * self._gradient(delta))
        elif self.norm == "l1":
            delta.copy_(delta.sign() * (delta.abs() - by).clamp(min=0))
        elif self.norm == "squared l2":
            delta.div_(1 + 2 * by)
        elif self.norm == "l2":
            length = torch.linalg.vector_norm(delta)
            delta.mul_(torch.where(length > by, 1 - by / length, 0))
        else:
            ball = L1(by, None)
            inside = ops.project_(delta[None].clone(), torch.zeros_like(delta)[None], ball=ball)
            delta.sub_(inside[0])

    def _gradient(self, delta: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = delta.detach().clone().requires_grad_()
            (grad,) = torch.autograd.grad(self.value(leaf), leaf)
        return grad
