"""Steps where arithmetic, or the box, is at its end: feasible and finite all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from tolerance import assert_in_ball, assert_in_box
from torch import Tensor

import fastadv as fa
from fastadv import ops, reference

BALLS = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}


def _reference_l2(
    x_adv: Tensor, grad: Tensor, x: Tensor, *, ball: fa.Ball, step_size: float, steepest=True
) -> Tensor:
    size = ops.per_sample(step_size, x, "step_size")
    radius = ops.per_sample(ball.radius, x, "radius", round_down=True)
    reference.step_l2_(x_adv, grad, x, size, radius, ball.bounds_for(x), steepest)
    return x_adv


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


@pytest.mark.parametrize("served", [ops.step_, _reference_l2], ids=["op", "reference"])
@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-162, 1e-140, 1e140, 1e160, 1e300])
def test_float64_gradients_whose_squares_are_no_numbers(served: Callable, size: float) -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.rand(3, 40, generator=g).double()
    small = torch.randint(-4, 5, (3, 40), generator=g).double()  # as size * small holds exactly
    small[1] = 0  # nothing moves, whatever the others do
    x_adv = fa.L2(0.3).project(x + 0.1 * torch.randn(3, 40, generator=g).double(), x)
    settings = {"ball": fa.L2(0.3), "step_size": 0.1}
    got = served(x_adv.clone(), small * size, x, **settings)
    expected = served(x_adv.clone(), small, x, **settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)
    assert torch.equal(got[1], x_adv[1])
    assert not torch.equal(got[0], x_adv[0])
    assert_in_ball(got, x, 0.3, "l2")
    raw = served(x_adv.clone(), small * size, x, ball=fa.L2(0.3), step_size=0.01, steepest=False)
    far = 1e100 if size > 1 else 0.0  # to the ball's end, or nowhere
    expected = served(
        x_adv.clone(), small * far, x, ball=fa.L2(0.3), step_size=0.01, steepest=False
    )
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_gradients_of_any_size_have_a_direction(dtype: torch.dtype) -> None:
    x = torch.full((1, 24), 0.5, dtype=dtype)
    sign = torch.where(torch.arange(24) % 2 == 0, 1.0, -1.0).to(dtype)[None]
    expected = ops.step_(x.clone(), sign, x, ball=fa.L2(0.3), step_size=0.2)
    for size in (torch.finfo(dtype).smallest_normal / 8, torch.finfo(dtype).max):
        for served in (ops.step_, _reference_l2):
            got = served(x.clone(), sign * size, x, ball=fa.L2(0.3), step_size=0.2)
            torch.testing.assert_close(got, expected)
