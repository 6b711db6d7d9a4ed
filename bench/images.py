"""Real images to train and to attack on: MNIST from an .npz file, or scikit-learn's digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastadv.cli import digits


@dataclass(frozen=True)
class Images:
    """Gray images (N, 1, side, side) in [0, 1], and their labels."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` test images from all over the set: the first thousands of MNIST's are harder."""
        index = torch.linspace(0, len(self.x_test) - 1, count).long()
        return self.x_test[index].contiguous(), self.y_test[index]


def load(path: Path | None) -> Images:
    """x_train, y_train, x_test and y_test in uint8 from a file; None: the digits."""
    if path is None:
        own = digits.load()
        return Images("digits", own.x, own.y, own.x_test, own.y_test)
    with np.load(path) as file:
        x, x_test = (
            torch.from_numpy(file[name]).float()[:, None] / 255 for name in ("x_train", "x_test")
        )
        y, y_test = (torch.from_numpy(file[name]).long() for name in ("y_train", "y_test"))
    return Images(path.stem, x, y, x_test, y_test)
