"""The updates as other libraries write them: the same operations in the same order, in eager torch.

torchattacks 3.5 (PGD.forward, PGDL2.forward) and adversarial-robustness-toolbox 1.20
(ProjectedGradientDescentPyTorch._apply_perturbation and _projection), without their models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def torchattacks_linf(x_adv: Tensor, grad: Tensor, x: Tensor, radius: float, size: float) -> Tensor:
    moved = x_adv.detach() + size * grad.sign()
    delta = torch.clamp(moved - x, min=-radius, max=radius)
    return torch.clamp(x + delta, min=0, max=1).detach()


def torchattacks_l2(x_adv: Tensor, grad: Tensor, x: Tensor, radius: float, size: float) -> Tensor:
    shape = (len(x), *[1] * (x.dim() - 1))
    norms = torch.norm(grad.view(len(x), -1), p=2, dim=1) + 1e-10
    moved = x_adv.detach() + size * (grad / norms.view(shape))
    delta = moved - x
    lengths = torch.norm(delta.view(len(x), -1), p=2, dim=1)
    factor = torch.min(radius / lengths, torch.ones_like(lengths))
    return torch.clamp(x + delta * factor.view(shape), min=0, max=1).detach()


def art_linf(x_adv: Tensor, grad: Tensor, x: Tensor, radius: float, size: float) -> Tensor:
    moved = torch.clamp(x_adv + size * grad.sign(), 0, 1)
    delta = (moved - x).reshape(len(x), -1)
    limit = torch.tensor([radius], dtype=x.dtype)
    return (delta.sign() * torch.minimum(delta.abs(), limit)).reshape(x.shape) + x


def art_l2(x_adv: Tensor, grad: Tensor, x: Tensor, radius: float, size: float) -> Tensor:
    axes = tuple(range(1, x.dim()))
    unit = grad / (torch.sqrt(torch.sum(grad * grad, axes, keepdim=True)) + 1e-7)
    moved = torch.clamp(x_adv + size * unit, 0, 1)
    delta = (moved - x).reshape(len(x), -1)
    lengths = torch.norm(delta, p=2, dim=1) + 1e-7
    factor = torch.minimum(torch.tensor(1.0, dtype=x.dtype), radius / lengths)
    return (delta * factor.unsqueeze(-1)).reshape(x.shape) + x


STEPS: dict[str, dict[str, Step]] = {
    "linf": {"torchattacks": torchattacks_linf, "ART": art_linf},
    "l2": {"torchattacks": torchattacks_l2, "ART": art_l2},
    "l1": {},  # neither steps along the largest gradients
}
