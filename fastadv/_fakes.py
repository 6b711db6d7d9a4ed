"""The ops on tensors without data: the shapes and dtypes of what they return, for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.reference import compute_dtype


def no_result(*args: object) -> None:
    """The fake of an op that only mutates."""


def head(
    logits: Tensor, y: Tensor, target: Tensor | None, head: int, targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(logits.dtype)
    labels = y.dim() == 2 and head == 1
    prediction = (
        torch.empty_like(logits, dtype=torch.bool)
        if labels
        else logits.new_empty(len(logits), dtype=torch.long)
    )
    return logits.new_empty(len(logits), dtype=dtype), torch.empty_like(logits), prediction


def digest(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.long)


def uniform(x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
    return x.new_empty(x.shape, dtype=compute_dtype(x.dtype))
