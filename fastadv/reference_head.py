"""The fused heads in plain torch, on any device: their definition, and the oracle of every kernel.

A head takes logits (N, C) to the loss (N,), the gradient of the *summed* loss with respect to the
logits (N, C), and the prediction: the argmax (N,), or for binary cross-entropy logits > 0 (N, C).
It computes in float64 for float64 logits and in float32 for the others; the loss has that dtype,
the gradient that of the logits. No autograd: these are the closed forms of fastadv.objectives.

What holds at the edges: NaN passes to the loss; the first of equal logits wins, and NaN is the
largest, as in torch.argmax; a label outside [0, C), or a binary one that is neither 0 nor 1, gives
a NaN loss and no gradient, and is never read out of bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MARGIN, DLR, KL = range(5)


def head(
    logits: Tensor,  # (N, C)
    y: Tensor,  # (N,) int64; binary cross-entropy and kl: (N, C) in the compute dtype
    target: Tensor | None,  # (N,) int64 for the targeted dlr; else None, and y is the target
    head: int,
    targeted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, grad, prediction) of one head; targeted, its objective's own targeted form."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    if head == DLR and targeted:
        assert target is not None
        loss, grad = _targeted_dlr(z, y, target)
    else:
        sign = -1 if targeted else 1
        loss, grad = (sign * part for part in _HEADS[head](z, y))
    prediction = z > 0 if head == BINARY_CROSS_ENTROPY else z.argmax(1)
    return loss, grad.to(logits.dtype), prediction


def _cross_entropy(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """-log p_y, and p - onehot(y)."""
    label, valid = _labels(z, y)
    log_p = z.log_softmax(1)
    grad = log_p.exp().scatter_add(1, label, z.new_full(label.shape, -1))
    return _where_valid(valid, -log_p.gather(1, label), grad)


def _binary_cross_entropy(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the labels of log(1 + exp(s)), s = (1 - 2 y) z."""
    s = torch.where(y == 1, -z, z)
    valid = (y == 0) | (y == 1)
    grad = torch.where(y == 1, -s.sigmoid(), s.sigmoid())
    loss = torch.where(valid, -torch.nn.functional.logsigmoid(-s), torch.nan)
    return loss.sum(1), torch.where(valid, grad, 0)


def _margin(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """max_{j != y} z_j - z_y."""
    label, valid = _labels(z, y)
    other, index = z.scatter(1, label, -torch.inf).max(1, keepdim=True)
    one = z.new_ones(label.shape)
    grad = torch.zeros_like(z).scatter_add(1, index, one).scatter_add(1, label, -one)
    return _where_valid(valid, other - z.gather(1, label), grad)


def _dlr(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(max_{j != y} z_j - z_y) / (z_1st - z_3rd), arXiv 2003.01690 eq. 6."""
    label, valid = _labels(z, y)
    order = z.sort(dim=1, descending=True, stable=True).indices
    other = torch.where(order[:, :1] == label, order[:, 1:2], order[:, :1])
    return _where_valid(valid, *_ratio(z, other, label, _ranks(order, 0, 2), (1.0, -1.0)))


def _targeted_dlr(z: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2), arXiv 2003.01690 eq. 7."""
    (label, valid), (other, also_valid) = _labels(z, y), _labels(z, target)
    order = z.sort(dim=1, descending=True, stable=True).indices
    ratio = _ratio(z, other, label, _ranks(order, 0, 2, 3), (1.0, -0.5, -0.5))
    return _where_valid(valid & also_valid, *ratio)


def _kl(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of y log(y / p), 0 where y is 0, and p * sum(y) - y."""
    log_p = z.log_softmax(1)
    loss = torch.xlogy(y, y) - torch.where(y == 0, 0, y * log_p)
    return loss.sum(1), log_p.exp() * y.sum(1, keepdim=True) - y


_HEADS = (_cross_entropy, _binary_cross_entropy, _margin, _dlr, _kl)


def _ranks(order: Tensor, *which: int) -> Tensor:  # (N, C) -> (N, len(which))
    return torch.stack([order[:, i] for i in which], 1)


def _ratio(
    z: Tensor, other: Tensor, label: Tensor, ranks: Tensor, weights: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """(z_other - z_label) / sum(weights * z_ranks); a divisor of 0 counts as the constant 1."""
    weight = torch.stack([z.new_full((), w) for w in weights])  # a copy would wait for the device
    spread = (z.gather(1, ranks) * weight).sum(1, keepdim=True)
    slope = 1 / torch.where(spread == 0, 1, spread)
    loss = (z.gather(1, other) - z.gather(1, label)) * slope
    pull = torch.where(spread == 0, 0, -loss * slope) * weight
    grad = torch.zeros_like(z).scatter_add(1, ranks, pull)
    return loss, grad.scatter_add(1, other, slope).scatter_add(1, label, -slope)


def _labels(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y as an index (N, 1) that is always in range, and whether it was (N, 1)."""
    label = y[:, None]
    valid = (label >= 0) & (label < z.shape[1])
    return torch.where(valid, label, 0), valid


def _where_valid(valid: Tensor, loss: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(valid, loss, torch.nan)[:, 0], torch.where(valid, grad, 0)
