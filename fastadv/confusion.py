"""What a segmentation model says of pixels: the confusion matrix, pixel accuracy and mIoU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.labels import ClassLabels
from fastadv.objectives import Objective


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts: (C, C) int64, on the CPU: how many pixels of label i are predicted as j; void ones
    nowhere."""

    counts: Tensor

    @classmethod
    def of(
        cls,
        prediction: Tensor,  # (N, H, W)
        y: Tensor,  # (N, H, W)
        counted: Tensor,  # (N, H, W) bool
        classes: int,
    ) -> Confusion:
        """Of labels in [0, classes) wherever they count."""
        pairs = y.long()[counted] * classes + prediction[counted]
        return cls(torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu())

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts)

    @property
    def pixel_accuracy(self) -> float | None:
        """The share of the counted pixels that are right; None if none counts."""
        total = int(self.counts.sum())
        return int(self.counts.trace()) / total if total else None

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Per class: right, over the pixels so labelled or so predicted; None without any."""
        right, label, said = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        pairs = zip(right.tolist(), (label + said - right).tolist(), strict=True)
        return tuple(hit / union if union else None for hit, union in pairs)

    @property
    def miou(self) -> float | None:
        """The mean of `iou` over the classes that occur, as labels or predictions."""
        there = [value for value in self.iou if value is not None]
        return sum(there) / len(there) if there else None


def confusion(
    objective: Objective, logits: Tensor, y: Tensor, rows: Tensor | None = None
) -> Confusion | None:
    """Of logits (N, C, H, W) and y (N, H, W), of the samples where `rows` (N,) is True; None for
    other logits or labels."""
    kind = objective.labels
    if logits.dim() != 4 or not isinstance(kind, ClassLabels):
        return None
    counted = kind.counted(y)
    if rows is not None:
        counted = counted & rows.to(counted.device)[:, None, None]
    return Confusion.of(kind.prediction(logits), y, counted, logits.shape[1])
