"""The objectives' formulas, in plain differentiable torch: (logits, y) -> (N,).

Computed in float32 for half precision. What each maximises, and its edges, stand in objectives.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastadv.reference import compute_dtype


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return -_at(_compute(logits).log_softmax(1), y)


def binary_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    z = _compute(logits)
    positive = y.reshape(z.shape) != 0
    loss = -functional.logsigmoid(torch.where(positive, z, -z))
    return loss if loss.dim() == 1 else loss.sum(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    z = _compute(logits)
    return z.scatter(1, y.long()[:, None], -torch.inf).max(1).values - _at(z, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Where z_1st = z_3rd there is no scale to divide by, and it is the margin itself."""
    z = _compute(logits)
    largest = z.sort(dim=1, descending=True, stable=True)
    first, second, third = largest.values[:, :3].unbind(1)
    other = torch.where(largest.indices[:, 0] == y, second, first)
    return (other - _at(z, y)) / _nonzero(first - third)


def targeted_dlr(logits: Tensor, target: Tensor, y: Tensor) -> Tensor:
    z = _compute(logits)
    first, _, third, fourth = z.sort(dim=1, descending=True, stable=True).values[:, :4].unbind(1)
    return (_at(z, target) - _at(z, y)) / _nonzero(first - (third + fourth) / 2)


def kl(logits: Tensor, y: Tensor) -> Tensor:
    """Differentiable in y too; a y of 0 adds nothing, whatever the logit."""
    log_p = _compute(logits).log_softmax(1)
    zero = y == 0
    y = y.to(log_p.dtype)
    return (y * (y.masked_fill(zero, 1).log() - log_p.masked_fill(zero, 0))).sum(1)


def _compute(logits: Tensor) -> Tensor:
    return logits.to(compute_dtype(logits.dtype))


def _at(z: Tensor, y: Tensor) -> Tensor:
    return z.gather(1, y.long()[:, None]).squeeze(1)


def _nonzero(spread: Tensor) -> Tensor:
    return torch.where(spread == 0, torch.ones_like(spread), spread)
