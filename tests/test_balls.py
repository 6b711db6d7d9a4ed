"""The balls' laws: feasible, idempotent, nearest; samples uniform by volume."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import seeded
from hypothesis import given
from hypothesis import strategies as st
from tolerance import DTYPES, assert_in_ball, assert_in_box, assert_near, bits, tolerance
from torch import Tensor

import fastadv as fa

BALLS = (fa.Linf, fa.L2, fa.L1)
BOX = (0.1, 0.8)


def points(
    dtype: torch.dtype, size: int, seed: int, spread: float, bounds: tuple[float, float] = BOX
) -> tuple[Tensor, Tensor]:
    """x_adv up to `spread` around x, and x well inside the bounds."""
    g = seeded(seed)
    low, high = bounds
    x = low + (high - low) * (0.02 + 0.96 * torch.rand(3, size, generator=g))
    x_adv = x + spread * torch.randn(3, size, generator=g)
    return x_adv.to(dtype), x.to(dtype)


CASE = {
    "ball": st.sampled_from(BALLS),
    "dtype": st.sampled_from(DTYPES),
    "size": st.integers(1, 40),
    "radius": st.floats(0, 3),
    "spread": st.sampled_from([1e-4, 0.05, 0.5, 20.0]),
    "seed": st.integers(0, 2**31),
    "boxed": st.booleans(),
}


@given(**CASE)
def test_projection_is_feasible_and_exactly_idempotent(
    ball: type[fa.Ball], dtype: torch.dtype, size: int, radius: float, spread: float, seed: int,
    boxed: bool,
) -> None:  # fmt: skip
    x_adv, x = points(dtype, size, seed, spread)
    b = ball(radius, BOX if boxed else None)
    once = b.project(x_adv, x)
    assert_in_ball(once, x, radius, b.order)
    if boxed:
        assert_in_box(once, *torch.tensor(BOX, dtype=b.bounds_for(x).dtype))
    assert torch.equal(bits(b.project(once, x)), bits(once))
    inside = b.project(x, x)
    assert torch.equal(bits(inside), bits(x))  # x itself stays


@given(**CASE)
def test_projection_does_not_depend_on_the_batch(
    ball: type[fa.Ball], dtype: torch.dtype, size: int, radius: float, spread: float, seed: int,
    boxed: bool,
) -> None:  # fmt: skip
    x_adv, x = points(dtype, size, seed, spread)
    b = ball(radius, BOX if boxed else None)
    each = [b.project(x_adv[i : i + 1], x[i : i + 1]) for i in range(3)]
    assert torch.equal(torch.cat(each), b.project(x_adv, x))
    radii = torch.tensor([radius, 0.5 * radius, 0.0], dtype=torch.float64)
    together = b.project(x_adv, x, radius=radii)
    for i, r in enumerate(radii.tolist()):
        assert torch.equal(b.project(x_adv[i : i + 1], x[i : i + 1], radius=r)[0], together[i])


def nearest_l1(u: Tensor, cap: Tensor, radius: float) -> Tensor:
    """argmin ||w - u||_2 over ||w||_1 <= radius, 0 <= w_i sign(u_i) <= cap_i, all (n,) float64.

    By the KKT conditions w_i = sign(u_i) min(max(|u_i| - t, 0), cap_i), t >= 0 and t > 0 only where
    the radius binds; the sum is linear between the breakpoints |u_i| and |u_i| - cap_i.
    """
    m = u.abs()

    def left(t: float) -> float:
        return float(torch.minimum((m - t).clamp(min=0), cap).sum())

    if left(0) <= radius:
        return torch.minimum(m, cap) * u.sign()
    breaks = sorted({0.0, *m.tolist(), *(m - cap).clamp(min=0).tolist()})
    high = next(t for t in breaks if left(t) <= radius)
    low = breaks[breaks.index(high) - 1]
    slope = (left(low) - left(high)) / (high - low)
    t = high - (radius - left(high)) / slope if slope else high
    return torch.minimum((m - t).clamp(min=0), cap) * u.sign()


@given(**{**CASE, "radius": st.floats(1e-3, 3)})
def test_linf_and_l1_projections_are_the_nearest_points(
    ball: type[fa.Ball], dtype: torch.dtype, size: int, radius: float, spread: float, seed: int,
    boxed: bool,
) -> None:  # fmt: skip
    x_adv, x = points(dtype, size, seed, spread)
    b = ball(radius, BOX if boxed else None)
    got = b.project(x_adv, x)
    v, origin = x_adv.double(), x.double()
    low, high = BOX if boxed else (-math.inf, math.inf)
    if ball is fa.Linf:
        expected = v.clamp(origin - radius, origin + radius).clamp(low, high)
    elif ball is fa.L2:  # into the ball, then into the box, as its docstring says
        length = (v - origin).norm(dim=1, keepdim=True)
        expected = origin + (v - origin) * (radius / length.clamp(min=1e-300)).clamp(max=1)
        expected = expected.clamp(low, high)
    else:
        u = v - origin
        cap = torch.where(u > 0, high - origin, origin - low)
        rows = [nearest_l1(u[i], cap[i], radius) for i in range(3)]
        expected = origin + torch.stack(rows)
    assert_near(got, expected, size, max(1.0, radius, float(v.abs().max())))


def test_nearest_l1_solver_against_scipy() -> None:
    """The oracle above against a general solver, once."""
    optimize = pytest.importorskip("scipy.optimize")
    u = torch.tensor([0.9, -0.7, 0.3, 0.05, -1.2], dtype=torch.float64)
    cap = torch.tensor([0.2, 0.5, 0.4, 0.1, 0.6], dtype=torch.float64)
    w = nearest_l1(u, cap, 0.8) * u.sign()
    found = optimize.minimize(
        lambda w: float(((torch.tensor(w) - u.abs()) ** 2).sum()), [0.1] * 5, method="SLSQP",
        bounds=[(0, c) for c in cap.tolist()], options={"ftol": 1e-14},
        constraints={"type": "ineq", "fun": lambda w: 0.8 - w.sum()},
    )  # fmt: skip
    torch.testing.assert_close(w, torch.tensor(found.x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ball", BALLS)
def test_samples_are_feasible_and_depend_on_their_index_alone(
    ball: type[fa.Ball], dtype: torch.dtype
) -> None:
    _, x = points(dtype, 30, 1, 0.0)
    b = ball(8 / 255, BOX)
    whole = b.sample(x, 7, offset=2, stream=1)
    assert_in_ball(whole, x, 8 / 255, b.order)
    assert_in_box(whole, *torch.tensor(BOX, dtype=b.bounds_for(x).dtype))
    parts = [b.sample(x[:1], 7, offset=2, stream=1), b.sample(x[1:], 7, offset=3, stream=1)]
    assert torch.equal(torch.cat(parts), whole)
    for other in (b.sample(x, 8, offset=2, stream=1), b.sample(x, 7, offset=2, stream=2)):
        assert not torch.equal(other, whole)
    radii = torch.tensor([0.0, 0.01, 0.2])
    spread = b.sample(x, 7, radius=radii)
    assert_in_ball(spread, x, radii, b.order)
    assert torch.equal(spread[0], x[0])
    assert len(b.sample(x[:0], 7)) == 0


@pytest.mark.parametrize("dim", [1, 2, 3, 20])
@pytest.mark.parametrize("ball", BALLS)
def test_samples_are_uniform_by_volume(ball: type[fa.Ball], dim: int) -> None:
    """A norm below s * radius has probability s^dim, and coordinates have the ball's moments."""
    n, radius = 60000, 0.7
    x = torch.zeros(n, dim)
    b = ball(radius, None)
    delta = b.sample(x, 3).double() / radius
    u = b.norm(delta) ** dim  # uniform on [0, 1]
    for k in (1, 2, 3):
        assert abs(float((u**k).mean()) - 1 / (k + 1)) < 5 / n**0.5
    second = {"linf": 1 / 3, "l2": 1 / (dim + 2), "l1": 2 / ((dim + 1) * (dim + 2))}[b.order]
    assert abs(float((delta**2).mean()) / second - 1) < 5 * 3 / n**0.5
    assert float(delta.mean(0).abs().max()) < 6 * (second / n) ** 0.5
    if dim > 1:
        cross = (delta[:, 0] * delta[:, 1]).mean() / second
        assert abs(float(cross)) < 6 * 3 / n**0.5
        fair = (delta[:, 0] > delta[:, 1]).double().mean()
        assert abs(float(fair) - 0.5) < 5 / n**0.5


@pytest.mark.parametrize("ball", BALLS)
def test_samples_do_not_depend_on_the_memory_format(ball: type[fa.Ball]) -> None:
    x = torch.rand(4, 3, 5, 5, generator=seeded(2))
    plain = ball(0.4).sample(x, 5)
    for strange in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        got = ball(0.4).sample(strange, 5)
        assert float((got - plain).abs().max()) <= tolerance(torch.float32, 75)


@pytest.mark.parametrize("ball", BALLS)
def test_a_sample_may_be_a_number(ball: type[fa.Ball]) -> None:
    x = torch.rand(6, generator=seeded(3))
    got = ball(0.2, None).sample(x, 1)
    assert got.shape == (6,)
    assert_in_ball(got, x, 0.2, ball.order)
    torch.testing.assert_close(
        ball(0.2, None).norm(torch.full((3,), -2.0)), torch.full((3,), 2.0).double()
    )


def test_norms() -> None:
    delta = torch.tensor([[3.0, -4.0], [0.0, 0.5]])
    assert fa.Linf(1.0).norm(delta).tolist() == [4.0, 0.5]
    assert fa.L2(1.0).norm(delta).tolist() == [5.0, 0.5]
    assert fa.L1(1.0).norm(delta).tolist() == [7.0, 0.5]


def test_balls_are_values() -> None:
    one, other = fa.Linf(8 / 255), fa.Linf(8 / 255, (0, 1))
    assert one == other
    assert hash(one) == hash(other)
    assert one != fa.L2(8 / 255)
    assert repr(one) == f"Linf(radius={8 / 255}, bounds=(0.0, 1.0))"
    each = fa.Linf(1, ([0, -1], torch.tensor([1.0, 2.0])))
    assert each.bounds == ((0.0, -1.0), (1.0, 2.0))
    assert fa.Linf(1, (0, (1.0, 2.0))).bounds == ((0.0, 0.0), (1.0, 2.0))
    assert len({each, fa.Linf(1, ((0, -1), (1, 2)))}) == 1


def test_projection_leaves_its_arguments_alone() -> None:
    x_adv, x = points(torch.float32, 9, 1, 0.5)
    x_adv.requires_grad_()
    copies = x_adv.detach().clone(), x.clone()
    assert not fa.L2(0.1).project(x_adv, x).requires_grad
    assert torch.equal(x_adv, copies[0])
    assert torch.equal(x, copies[1])
