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


INF = torch.inf
EXTREMES = (
    [1e30, -1e30, 1e30, 0.0, 5.0],
    [-1e30, -1e30, -1e30, -1e30, 1e30],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [3.0, 3.0, 3.0, 3.0, 1.0],
    [-INF, 1.0, 2.0, -INF, 0.5],
    [-INF, -INF, -INF, -INF, 2.0],
    [-INF, -INF, -INF, -INF, -INF],
    [INF, 1.0, 2.0, 3.0, 4.0],
    [INF, INF, 2.0, 3.0, -INF],
    [100.0, 0.0, -3.0, -2.0, 99.0],
    [1e-30, 2e-30, -1e-30, 0.0, 3e-30],
)


def assert_close(case: Case, results: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
    """Compares `results` (None: the op's) with the definition in float64.

    Within the roundings that can have happened: a sum over C classes, in lanes of 4 or more, is
    off by (C / 4 + a few) eps, the exponent of e^d by |d| eps, and dlr's divisor by eps * max |z|
    before it divides.
    """
    loss, grad, prediction = case.run() if results is None else results
    expected_loss, expected_grad, expected_prediction = case.expected()
    z = case.logits.double()
    assert loss.dtype == compute_dtype(case.logits.dtype)
    assert grad.dtype == case.logits.dtype
    assert torch.equal(prediction, expected_prediction)
    roundings = torch.finfo(loss.dtype).eps * (16 + z.shape[1] / 4)
    size = 1 + z.abs().amax(1)
    if case.head == DLR:
        size = size * (1 + expected_grad.abs().amax(1))
    elif case.head == MARGIN:
        assert torch.equal(grad.double(), expected_grad)
    off = (loss.double() - expected_loss).abs()
    assert bool((off <= roundings * (size + expected_loss.abs())).all())
    stored = torch.finfo(case.logits.dtype)
    allowed = roundings * size[:, None] + stored.eps * expected_grad.abs()
    if case.head == DLR:
        allowed = allowed * (1 + expected_grad.abs().amax(1, keepdim=True))
    assert bool(((grad.double() - expected_grad).abs() <= allowed + stored.smallest_normal).all())
