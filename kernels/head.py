"""The launcher of the heads, with the signature of torch.ops.fastadv.head: one launch each."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastadv.kernels import checks, tiles
from fastadv.kernels.head_margins import binary_cross_entropy, dlr, margin
from fastadv.kernels.head_probabilities import cross_entropy, kl
from fastadv.reference import compute_dtype

CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MARGIN, DLR, KL = range(5)  # as in reference_head
LEAST = {MARGIN: 2, DLR: 3}
KERNELS = {
    CROSS_ENTROPY: cross_entropy,
    BINARY_CROSS_ENTROPY: binary_cross_entropy,
    MARGIN: margin,
    KL: kl,
}


def _check(logits: Tensor, y: Tensor, target: Tensor | None, head: int, targeted: bool) -> None:
    checks.floating(logits, "logits")
    if logits.dim() != 2 or not logits.is_contiguous() or logits.shape[1] == 0:
        raise ValueError(
            f"`logits` must be (N, classes) and contiguous, got {checks.shape(logits)}"
        )
    if not 0 <= head < 5:
        raise ValueError(f"`head` must be 0 to 4, got {head}")
    least = LEAST.get(head, 1) + (head == DLR and targeted)
    if logits.shape[1] < least:
        raise ValueError(f"`logits` must have {least} classes or more, got {logits.shape[1]}")
    if head in (BINARY_CROSS_ENTROPY, KL):
        if y.shape != logits.shape or not y.is_contiguous():
            raise ValueError(
                f"`y` must be {checks.shape(logits)} like `logits`, got {checks.shape(y)}"
            )
        checks.check_kind(y, "y", compute_dtype(logits.dtype), logits)
        return
    labels = [("y", y)]
    if head == DLR and targeted:
        if target is None:
            raise ValueError("`target` must be given for the targeted dlr")
        labels.append(("target", target))
    for name, t in labels:
        if t.shape != (len(logits),) or not t.is_contiguous():
            raise ValueError(f"`{name}` must be ({len(logits)},), got {checks.shape(t)}")
        checks.check_kind(t, name, torch.int64, logits)


def head(
    logits: Tensor, y: Tensor, target: Tensor | None, head: int, targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (N,), its gradient like the logits, prediction): see reference_head.head."""
    _check(logits, y, target, head, targeted)
    samples, classes = logits.shape
    loss = logits.new_empty(samples, dtype=compute_dtype(logits.dtype))
    grad = torch.empty_like(logits)
    if head == BINARY_CROSS_ENTROPY:
        prediction = torch.empty_like(logits, dtype=torch.bool)
    else:
        prediction = logits.new_empty(samples, dtype=torch.long)
    if samples == 0:
        return loss, grad, prediction
    unit = tiles.unit(classes)
    tile = tiles.head(classes, logits.element_size())
    if head == BINARY_CROSS_ENTROPY:
        tile = tiles.labels_head(classes, logits.element_size())
    grid = (triton.cdiv(samples, tile.rows),)
    options = {"UNIT": unit, "ROWS": tile.rows, "COLS": tile.columns} | tiles.options(tile.warps)
    if head in (CROSS_ENTROPY, KL):
        options["LONG"] = tile.long
    with checks.current_device(logits):
        if head == DLR:
            aim = target if targeted else None
            dlr[grid](logits, y, aim, loss, grad, prediction, samples, classes // unit, **options)
        else:
            sign = -1 if targeted else 1
            KERNELS[head][grid](
                logits, y, loss, grad, prediction, samples, classes // unit, sign,
                **options,
            )  # fmt: skip
    return loss, grad, prediction
