"""The l1 step finds its largest gradients by a sample, and visits only what matters: where it may
go wrong, it must give what reading everything gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tolerance import DTYPES, assert_in_ball, assert_near
from torch import Tensor

import fastadv  # noqa: F401 (the ops)
from fastadv import reference

SIZE = 5000  # samples 625 gradients, every eighth
EIGHTH = torch.arange(SIZE) % 8
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "all differ": lambda g: g,
    "large ones hide from the sample": lambda g: torch.where(EIGHTH == 1, 9 * g, g),
    "the sample sees the large ones alone": lambda g: torch.where(EIGHTH == 0, g, 0),
    "ties": lambda g: (2 * g).round(),
    "fewer than move": lambda g: torch.where(torch.arange(SIZE) < 7, g, -0.0),
    "none": lambda g: -0.0 * g.abs(),
    "rising": lambda g: g.sort(dim=1).values,
}
OFF_X = {"at x": 0.0, "sparse": 0.01, "dense": 1.0}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("off", OFF_X)
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_sample_never_changes_the_step(name: str, off: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, SIZE, generator=generator).to(dtype)
    moved = torch.rand(2, SIZE, generator=generator) < OFF_X[off]
    noise = 0.01 * torch.randn(2, SIZE, generator=generator)
    x_adv = torch.where(moved, x.float() + noise, x.float()).clamp(0, 1).to(dtype)
    grad = GRADIENTS[name](torch.randn(2, SIZE, generator=generator)).to(dtype)
    wide = reference.compute_dtype(dtype)
    step, radius, box = (torch.tensor(v, dtype=wide) for v in (5.0, 3.0, [0.0, 1.0]))

    got, expected = x_adv.clone(), x_adv.double()
    torch.ops.fastadv.step_l1_(got, grad, x, step, radius, box, True, 0.01)
    doubles = (t.double() for t in (grad, x, step, radius, box))
    reference.step_l1_(expected, *doubles, True, 0.01)
    assert_near(got, expected, SIZE, 2.0)
    assert_in_ball(got, x, radius, "l1")
