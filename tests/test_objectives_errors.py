"""Logits, labels and targets that do not go together: each gets its own error."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from fastadv.objectives import Objective, binary_cross_entropy, cross_entropy, dlr, kl, margin

generator = torch.Generator().manual_seed(0)
z = torch.randn(9, 6, generator=generator, dtype=torch.float64)
y = torch.randint(0, 6, (9,), generator=generator)
p = torch.randn(9, 6, generator=generator, dtype=torch.float64).softmax(1)
image = torch.zeros(2, 5, 8, 8)
BAD = [
    (cross_entropy, image, y[:2], None, ValueError, "must be (2, 8, 8) to go with"),
    (kl, image, image[:, 1:], None, ValueError, "`y` must be (2, 5, 8, 8) to go with"),
    (kl, image[0], image[0], None, ValueError, "(N, classes) or (N, classes, H, W), got (5, 8, 8)"),
    (margin, z[:, 0], y, None, ValueError, "(9,): one logit a sample goes with binary_cross"),
    (margin, z[:, :1], y * 0, None, ValueError, "margin needs 2 classes or more, got 1: one logit"),
    (dlr, z[:, :2], y * 0, None, ValueError, "the dlr needs 3 classes or more, got 2"),
    (dlr, z[:, :3], y * 0, y * 0, ValueError, "the targeted dlr needs 4 classes or more, got 3"),
    (dlr, z, None, y, ValueError, "`y` must be given"),
    (cross_entropy, z, None, None, ValueError, "`y` must be given"),
    (cross_entropy, z.long(), y, None, TypeError, "`model(x)` must be floating, got int64"),
    (cross_entropy, z, y[:4], None, ValueError, "(9,) to go with `model(x)` (9, 6), got (4,)"),
    (cross_entropy, z, y[:, None], None, ValueError, "got (9, 1)"),
    (cross_entropy, z, y.double(), None, TypeError, "`y` must be integers (class labels), got"),
    (cross_entropy, z, y > 1, None, TypeError, "`y` must be integers (class labels), got bool"),
    (cross_entropy, z, p, None, TypeError, "probabilities go with kl"),
    (cross_entropy, z, y + 4, None, ValueError, "`y` must be in [0, 6), got"),
    (cross_entropy, z, y - 9, None, ValueError, "for sample 0"),
    (dlr, z, y, y + 7, ValueError, "`target` must be in [0, 6), got"),
    (dlr, z, y, y[:3], ValueError, "`target` must be (9,)"),
    (cross_entropy, z, None, y - 7, ValueError, "`target` must be in [0, 6), got"),
    (cross_entropy, z / 0, y, None, ValueError, "`model(x)` must be numbers, got NaN or +inf"),
    (binary_cross_entropy, z * torch.nan, z > 0, None, ValueError, "`model(x)` must be numbers"),
    (binary_cross_entropy, image, y, None, ValueError, "(N,), (N, 1) or (N, labels), got (2, 5"),
    (binary_cross_entropy, z, y, None, ValueError, "`y` must be (9, 6) to go with"),
    (binary_cross_entropy, z[:, 0], y + 2, None, ValueError, "`y` must be 0 or 1, got"),
    (binary_cross_entropy, z[:, 0], z[:, 0], None, ValueError, "`y` must be 0 or 1, got"),
    (binary_cross_entropy, z[:, 0], y[:5], None, ValueError, "`y` must be (9,)"),
    (kl, z, y, None, TypeError, "(floating), got int64 of shape (9,): class labels"),
    (kl, z, p[:, :4], None, ValueError, "`y` must be (9, 6)"),
    (kl, z, p * 2, None, ValueError, "of sum 1 in each row, got a sum of 2 for sample 0"),
    (kl, z, p - 1, None, ValueError, "at least 0"),
    (kl, z, p * torch.nan, None, ValueError, "got a sum of nan"),
    (kl, z, None, p * 2, ValueError, "`target` must hold probabilities"),
    (margin, z, y.to("meta"), None, ValueError, "`y` must be on cpu like `model(x)`, got meta"),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "z", "y", "target", "error", "message"), BAD)
def test_bad_input(
    objective: Objective,
    z: Tensor,
    y: Tensor | None,
    target: Tensor | None,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        objective.prepare(z, y, target)
