"""Steps where arithmetic, or the box, is at its end: feasible and finite all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tolerance import assert_in_ball, assert_in_box

import fastadv as fa
from fastadv import ops

BALLS = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", BALLS)
def test_half_precision_x_beyond_the_box_by_its_own_rounding(
    order: str, dtype: torch.dtype
) -> None:
    """A white pixel of ImageNet's normalised data, 2.2489, is 2.25 in bfloat16."""
    low, high = (0 - 0.485) / 0.229, (1 - 0.485) / 0.229
    ball = BALLS[order](0.5, (low, high))
    x = torch.tensor([[high, low, 0.3] * 4]).to(dtype)
    for grad in (torch.ones_like(x), -x, torch.zeros_like(x)):
        got = ops.step_(x.clone(), grad, x, ball=ball, step_size=0.3)
        assert_in_box(got, *ball.bounds_for(x))
        assert_in_ball(got, x, 0.5, order)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("order", BALLS)
def test_raw_steps_beyond_the_numbers(order: str, bounds: tuple[float, float] | None) -> None:
    """step_size * grad is inf in float32: the step ends in the ball, where the gradient points."""
    x = torch.zeros(2, 5)
    grad = torch.tensor([[3e38, -3e38, 1.0, 0.0, 1e38], [1.0, 0.0, 2.0, -0.5, 0.25]])
    for radius in (1e-3, 0.5):
        ball = BALLS[order](radius, bounds)
        got = ops.step_(x.clone(), grad, x, ball=ball, step_size=10.0, steepest=False)
        assert bool(torch.isfinite(got).all())
        assert_in_ball(got, x, radius, order)
        assert bool((got * grad >= 0).all())
        if order != "l1":
            assert float(ball.norm(got).min()) > 0.99 * radius


@pytest.mark.parametrize("order", BALLS)
def test_a_point_far_outside_comes_back(order: str) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(4, 60, generator=g)
    for far in (10.0, 1e3, 1e5, 1e9, 1e30):
        x_adv = x + far * torch.randn(4, 60, generator=g)
        for radius in (1e-3, 0.5):
            for bounds in (None, (0.0, 1.0)):
                got = BALLS[order](radius, bounds).project(x_adv, x)
                assert_in_ball(got, x, radius, order)
                if order == "linf" or (order == "l2" and bounds is None):
                    assert float(BALLS[order](radius).norm(got.double() - x).min()) > 0.9 * radius


@pytest.mark.parametrize("order", BALLS)
def test_samples_without_elements_do_not_crash_the_ops(order: str) -> None:
    """In a process of its own: a division by zero elements a channel would end it."""
    more = ", 0.05" if order == "l1" else ""
    code = (
        "import torch, fastadv; z, r = torch.zeros(2, 3, 0), torch.tensor(0.1); "
        "b = torch.tensor([[0.0] * 3, [1.0] * 3]); "
        f"torch.ops.fastadv.step_{order}_(z.clone(), z, z, r, r, b, True{more})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
