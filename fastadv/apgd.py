"""Auto-PGD (Croce and Hein 2003.01690, algorithm 1): PGD that finds its own step sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv import ops
from fastadv.problem import Problem
from fastadv.reference import rows
from fastadv.rules import Auto

_MOMENTUM = 0.75  # alpha of equation 2


def auto_ascent(problem: Problem, x_adv: Tensor, rule: Auto, steps: int) -> Tensor:
    """The first iterate that fools the model, else the one of largest loss; `steps` gradients."""
    x, ball, radius = problem.x, problem.ball, problem.radius
    step_size = (2 * radius).expand(len(x)).clone()
    previous = x_adv
    best = _Best(x_adv)
    checkpoint, period = 0, max(int(0.22 * steps), 1)
    shortest, shrinkage = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    for k in range(steps):
        loss, grad, fooled = problem.gradient(x_adv)
        best.update(x_adv, loss, grad, fooled)
        if k - checkpoint == period:
            halved = best.stalls(period, rule.rho)
            step_size = torch.where(halved, step_size / 2, step_size)
            x_adv = torch.where(rows(halved, x), best.x, x_adv)
            grad = torch.where(rows(halved, x), best.grad, grad)
            checkpoint, period = k, max(period - shrinkage, shortest)
        ahead = ops.step_(x_adv.clone(), grad, x, ball=ball, step_size=step_size, radius=radius)
        share = _MOMENTUM if k else 1.0
        moved = x_adv + share * (ahead - x_adv) + (1 - share) * (x_adv - previous)
        previous, x_adv = x_adv, ops.project_(moved, x, ball=ball, radius=radius)
    loss, fooled = problem.score(x_adv)
    best.update(x_adv, loss, None, fooled)
    return torch.where(rows(best.fooled, x), best.x_fooled, best.x)


class _Best:
    """The best iterate of each sample so far, and whether the steps since the last check helped."""

    def __init__(self, x_adv: Tensor) -> None:
        self.x = self.x_fooled = self.grad = x_adv
        self.fooled = torch.zeros(len(x_adv), dtype=torch.bool, device=x_adv.device)
        self.losses: list[Tensor] = []

    def update(self, x_adv: Tensor, loss: Tensor, grad: Tensor | None, fooled: Tensor) -> None:
        """Takes the samples whose loss is the largest yet, and those fooled for the first time."""
        if not self.losses:
            self.loss = self.loss_at_check = torch.full_like(loss, -torch.inf)
            self.halved = torch.zeros_like(fooled)
        self.losses.append(loss)
        better, first = rows(loss > self.loss, x_adv), rows(fooled & ~self.fooled, x_adv)
        self.x = torch.where(better, x_adv, self.x)
        self.x_fooled = torch.where(first, x_adv, self.x_fooled)
        if grad is not None:
            self.grad = torch.where(better, grad, self.grad)
        self.loss, self.fooled = torch.maximum(self.loss, loss), self.fooled | fooled

    def stalls(self, period: int, rho: float) -> Tensor:
        """Conditions 1 and 2 of section 3.2, over the last `period` steps: (N,) bool."""
        recent = torch.stack(self.losses[-period - 1 :])
        rises = (recent[1:] > recent[:-1]).sum(0)
        stuck = ~self.halved & (self.loss <= self.loss_at_check)
        self.halved = (rises <= rho * period) | stuck
        self.loss_at_check = self.loss
        return self.halved
