"""Maps as rows: what segmentation's logits (N, C, H, W) are to objectives of rows (M, C)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fastadv import ops


def head(
    logits: Tensor,  # (N, C, H, W)
    y: Tensor,  # (N, H, W) int64; kl: probabilities (N, C, H, W)
    target: Tensor | None,  # as y, where the head takes both
    counted: Tensor,  # (N, H, W) bool
    number: int,
    targeted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (N,), the mean over each sample's counted pixels; its gradient; prediction (N, H, W)).

    ops.head of every pixel: the label -1, of those that do not count, has no gradient.
    """
    goal = None if target is None else given(target, counted, -1)
    loss, grad, prediction = ops.head(rows(logits), given(y, counted, -1), goal, number, targeted)
    wide = torch.promote_types(grad.dtype, torch.float32)
    weight = (1 / _counts(counted).to(wide))[:, None, None]
    shape = (len(counted), counted[0].numel() if len(counted) else 0, logits.shape[1])
    grad = (grad.view(shape) * weight).to(logits.dtype)
    return mean(loss, counted), maps(grad, logits), prediction.view(counted.shape)


def loss(fn: Callable[..., Tensor], logits: Tensor, y: Iterable[Tensor], counted: Tensor) -> Tensor:
    """The same loss (N,) by `fn` of rows and labels, differentiable."""
    return mean(fn(rows(logits), *(given(one, counted, 0) for one in y)), counted)


def rows(logits: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C): a view of channels-last logits, else a copy."""
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def maps(values: Tensor, logits: Tensor) -> Tensor:
    """(N * H * W, C) -> (N, C, H, W), contiguous."""
    samples, classes, height, width = logits.shape
    return values.view(samples, height, width, classes).movedim(-1, 1).contiguous()


def given(y: Tensor, counted: Tensor, void: int) -> Tensor:
    """Labels (N, H, W) -> (N * H * W,) int64, `void` where not counted; probabilities as rows."""
    return (
        rows(y).contiguous() if y.dim() == 4 else torch.where(counted, y.long(), void).reshape(-1)
    )


def mean(loss: Tensor, counted: Tensor) -> Tensor:
    """Of (N * H * W,) over each sample's counted pixels -> (N,); 0 for a sample without any."""
    total = torch.where(counted, loss.view(counted.shape), 0).flatten(1).sum(1)
    return total / _counts(counted)


def _counts(counted: Tensor) -> Tensor:  # (N,)
    return counted.flatten(1).sum(1).clamp(min=1)
