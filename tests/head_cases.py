"""Calls of the fused heads, and what their definition gives in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.reference import compute_dtype
from fastadv.reference_head import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, DLR, KL, MARGIN
from fastadv.reference_head import head as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HEADS = (CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MARGIN, DLR, KL)
FORMS = [(head, targeted) for head in HEADS for targeted in (False, True)]


@dataclass
class Case:
    """One call's arguments."""

    logits: Tensor
    y: Tensor
    target: Tensor | None
    head: int
    targeted: bool

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.fastadv.head(self.logits, self.y, self.target, self.head, self.targeted)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        y = self.y.double() if self.y.is_floating_point() else self.y
        return reference(self.logits.double(), y, self.target, self.head, self.targeted)


def defined(head: int, targeted: bool, classes: int) -> bool:
    return classes >= {MARGIN: 2, DLR: 4 if targeted else 3}.get(head, 1)


def make(
    head: int, targeted: bool, dtype: torch.dtype, samples: int, classes: int, ties: bool = False
) -> Case:
    generator = torch.Generator().manual_seed(1000 * classes + samples)
    logits = 4 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (samples,), generator=generator)
    target = torch.randint(0, classes, (samples,), generator=generator)
    if head == BINARY_CROSS_ENTROPY:
        y = torch.randint(0, 2, (samples, classes), generator=generator).to(compute_dtype(dtype))
    elif head == KL:
        y = torch.randn(samples, classes, generator=generator).softmax(1).to(compute_dtype(dtype))
        y[:, -1] = 0
    logits = (logits.round() if ties else logits).to(dtype)
    return Case(logits, y, target if head == DLR and targeted else None, head, targeted)


def one_row(head: int, targeted: bool, row: list[float], y: int, dtype: torch.dtype) -> Case:
    logits = torch.tensor([row], dtype=dtype)
    label = torch.tensor([y])
    if head in (BINARY_CROSS_ENTROPY, KL):
        one_hot = torch.nn.functional.one_hot(label, len(row))
        label = one_hot.to(compute_dtype(dtype))
    target = torch.tensor([(y + 1) % len(row)]) if head == DLR and targeted else None
    return Case(logits, label, target, head, targeted)
