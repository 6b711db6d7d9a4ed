"""Attacks as their authors publish them, in plain torch and float64: oracles for fastadv's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # (N, d) -> (N,)


def gradient(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    values = loss(leaf)
    (grad,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), grad


def project(v: Tensor, x: Tensor, radius: float, order: str) -> Tensor:
    """Ball, then the box [0, 1]."""
    if order == "linf":
        return v.clamp(x - radius, x + radius).clamp(0, 1)
    d = v - x
    return (x + d * (radius / d.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)).clamp(
        0, 1
    )


def direction(grad: Tensor, order: str) -> Tensor:
    return grad.sign() if order == "linf" else grad / grad.norm(dim=1, keepdim=True)


def pgd(
    loss: Loss, x: Tensor, start: Tensor, radius: float, step: float, steps: int, order: str
) -> Tensor:
    """Madry et al. 1706.06083."""
    v = start
    for _ in range(steps):
        v = project(v + step * direction(gradient(loss, v)[1], order), x, radius, order)
    return v


def mi_fgsm(loss: Loss, x: Tensor, radius: float, steps: int, decay: float, order: str) -> Tensor:
    """Dong et al. 1710.06081, algorithm 1."""
    v, g = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        grad = gradient(loss, v)[1]
        g = decay * g + grad / grad.abs().sum(1, keepdim=True)
        v = project(v + radius / steps * direction(g, order), x, radius, order)
    return v


def apgd(loss: Loss, x: Tensor, start: Tensor, radius: float, steps: int, order: str) -> Tensor:
    """Croce and Hein 2003.01690, algorithm 1, as in their code, sample by sample: x_max."""
    found = [
        _apgd_one(
            lambda v, i=i: loss_of(loss, v, i, x),
            x[i : i + 1],
            start[i : i + 1],
            radius,
            steps,
            order,
        )
        for i in range(len(x))
    ]
    return torch.cat(found)


def loss_of(loss: Loss, v: Tensor, i: int, x: Tensor) -> Tensor:
    """The loss of sample i alone, the others being where they were."""
    return loss(torch.cat([x[:i], v, x[i + 1 :]]))[i : i + 1]


def _apgd_one(
    loss: Loss, x: Tensor, start: Tensor, radius: float, steps: int, order: str
) -> Tensor:
    period, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    v = old = best = start
    value, grad = gradient(loss, v)
    f_max, best_grad = value, grad
    f_last, halved_last = f_max, True
    history, step, since = [float(value)], 2 * radius, 0
    for i in range(steps):
        momentum, old = v - old, v
        share = 0.75 if i > 0 else 1.0
        z = project(v + step * direction(grad, order), x, radius, order)
        v = project(v + share * (z - v) + (1 - share) * momentum, x, radius, order)
        value, grad = gradient(loss, v)
        history.append(float(value))
        if value > f_max:
            best, f_max, best_grad = v, value, grad
        since += 1
        if since == period:
            rises = sum(history[-k] > history[-k - 1] for k in range(1, period + 1))
            stuck = not halved_last and f_last >= f_max
            halved_last = rises <= 0.75 * period or bool(stuck)
            f_last = f_max
            if halved_last:
                step, v, grad = step / 2, best, best_grad
            period, since = max(period - less, least), 0
    return best
