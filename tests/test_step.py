"""The fused steps: against reference.py, in the ball and the box without a tolerance."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from cases import Case, all_cases, make
from conftest import threads
from hypothesis import given
from hypothesis import strategies as st
from tolerance import DTYPES, assert_in_ball, assert_in_box, assert_near, bits

import fastadv as fa
from fastadv import ops, reference

ORDERS = {"linf": (), "l2": (), "l1": (0.2,)}
OP = {order: getattr(torch.ops.fastadv, f"step_{order}_") for order in ORDERS}
REFERENCE = {order: getattr(reference, f"step_{order}_") for order in ORDERS}
BALLS = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}


def stepped(function: object, case: Case, steepest: bool, more: tuple[float, ...]) -> torch.Tensor:
    args = case.args()
    assert function(*args, steepest, *more) is None
    return args[0]


@pytest.mark.parametrize("steepest", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linf_is_its_reference_to_the_bit(dtype: torch.dtype, steepest: bool) -> None:
    for case in all_cases(dtype):
        got = stepped(OP["linf"], case, steepest, ())
        expected = stepped(REFERENCE["linf"], case, steepest, ())
        assert torch.equal(bits(got), bits(expected))
        assert got.stride() == case.x_adv.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linf_bits_at_the_ends_of_arithmetic(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    ends = [0.0, -0.0, 1.0, -1.0, info.max, -info.max, info.tiny, -subnormal, subnormal, 0.1, -0.9]
    grads = [*ends, math.nan, -math.nan, math.inf, -math.inf]
    points = torch.tensor(ends, dtype=dtype)
    grid = torch.cartesian_prod(points, points, torch.tensor(grads, dtype=dtype))
    x_adv, x, grad = (column.contiguous()[None] for column in grid.unbind(1))
    wide = reference.compute_dtype(dtype)
    for radius in (0.0, 1e-30, 8 / 255, 1.0, 3e38, math.inf):
        for step in (0.0, 1e-40, 0.3):
            for bounds in (None, (-1.0, 1.0), (0.1, 0.7), (-math.inf, 0.5)):
                numbers = (torch.tensor(v, dtype=wide) for v in (step, radius))
                box = None if bounds is None else torch.tensor(bounds, dtype=wide)
                case = Case(x_adv, grad, x, *numbers, box)
                got, expected = (stepped(f["linf"], case, True, ()) for f in (OP, REFERENCE))
                assert torch.equal(bits(got), bits(expected)), (radius, step, bounds)


@pytest.mark.parametrize("steepest", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["l2", "l1"])
def test_step_is_its_reference_in_float64(order: str, dtype: torch.dtype, steepest: bool) -> None:
    for case in all_cases(dtype):
        more, size = ORDERS[order], case.x[0].numel()
        got = stepped(OP[order], case, steepest, more)
        expected = stepped(REFERENCE[order], case.double(), steepest, more)
        # A raw step may be long: its coordinates carry roundings of that length.
        raw = case.step_size.reshape(-1, 1) * case.grad.double().reshape(len(case.x), -1)
        scale = max(2.0, float(raw.abs().max())) if not steepest else 2.0
        assert_near(got, expected, size, scale)
        assert got.stride() == case.x_adv.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_ball_and_box_hold_exactly(order: str, dtype: torch.dtype) -> None:
    for seed, (size, steepest) in enumerate([(1, True), (37, True), (37, False), (700, True)]):
        for bounds in ("none", "one"):
            for radius in (0.0, 1e-3, 8 / 255, 0.9, 30.0):
                case = make((3, size), dtype, bounds, seed=seed, radius=radius, step=2 * radius)
                got = stepped(OP[order], case, steepest, ORDERS[order])
                assert_in_ball(got, case.x, case.radius, order)
                assert_in_box(got, *case.box())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_written_radius_holds_exactly(order: str, dtype: torch.dtype) -> None:
    """8 / 255 is a float64 that float32 lies above: the number that was written counts."""
    case = make((4, 50), dtype, "one")
    ball = BALLS[order](8 / 255)
    got = ops.step_(case.x_adv.clone(), case.grad, case.x, ball=ball, step_size=1.0)
    assert_in_ball(got, case.x, 8 / 255, order)
    assert_in_box(got, 0.0, 1.0)
    if order == "linf" and dtype != torch.bfloat16:  # and no more is lost than a rounding
        largest = (got.double() - case.x.double()).abs().max()
        assert largest > 8 / 255 * (1 - 2 * torch.finfo(dtype).eps * 255 / 8)


@given(
    st.sampled_from(list(ORDERS)), st.sampled_from(DTYPES), st.integers(1, 40),
    st.floats(0, 4, width=32), st.floats(0, 4, width=32), st.integers(0, 2**31), st.booleans(),
)  # fmt: skip
def test_laws_of_a_step(
    order: str, dtype: torch.dtype, size: int, radius: float, step: float, seed: int, steepest: bool
) -> None:
    case = make((2, size), dtype, "one", seed=seed, radius=radius, step=step)
    before = [bits(t).clone() for t in (case.grad, case.x)]
    got = stepped(OP[order], case, steepest, ORDERS[order])
    assert_in_ball(got, case.x, case.radius, order)
    assert_in_box(got, 0.0, 1.0)
    assert all(torch.equal(bits(t), b) for t, b in zip((case.grad, case.x), before, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_zero_gradient_moves_nothing(order: str) -> None:
    for dtype in DTYPES:
        case = make((3, 20), dtype, "one", radius=0.5)
        inside = BALLS[order](0.1).project(case.x_adv, case.x)
        got = ops.step_(
            inside.clone(), torch.zeros_like(inside), case.x, ball=BALLS[order](0.1), step_size=9.0
        )
        assert torch.equal(bits(got), bits(inside))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e20, 3e38])
def test_steepest_step_does_not_depend_on_the_gradients_size(order: str, size: float) -> None:
    x = torch.zeros(2, 16)
    sign = torch.where(torch.arange(16) % 3 == 0, -1.0, 1.0).expand(2, 16)
    ball = BALLS[order](1.0, None)
    got = ops.step_(x.clone(), sign * size, x, ball=ball, step_size=0.5, top=0.2)
    expected = ops.step_(x.clone(), sign.clone(), x, ball=ball, step_size=0.5, top=0.2)
    assert_near(got, expected, 16, 1.0)


@pytest.mark.parametrize("order", ORDERS)
def test_results_do_not_depend_on_threads_or_batch(order: str) -> None:
    more = ORDERS[order]
    for dtype in DTYPES:
        for bounds, last in (("none", False), ("each", False), ("each", True)):
            case = make((9, 3, 37, 41), dtype, bounds, last=last)  # more than a grain of work
            whole = stepped(OP[order], case, True, more)
            for n in (2, 3):
                with threads(n):
                    assert torch.equal(bits(stepped(OP[order], case, True, more)), bits(whole))
            for i in range(len(case.x)):
                parts = (case.x_adv, case.grad, case.x, case.step_size, case.radius)
                one = Case(*(t[i : i + 1] for t in parts), case.bounds)
                assert torch.equal(
                    bits(stepped(OP[order], one, True, more)), bits(whole[i : i + 1])
                )


@pytest.mark.parametrize("order", ORDERS)
def test_any_memory_format_gives_the_same_numbers(order: str) -> None:
    case = make((4, 3, 6, 6), torch.float32, "none", per_sample=False)
    ball = BALLS[order](0.3, ((-0.1, 0.0, 0.1), (0.9, 1.0, 1.1)))
    settings = {"ball": ball, "step_size": 0.1}
    expected = ops.step_(case.x_adv.clone(), case.grad, case.x, **settings)
    strange = {
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "strided": lambda t: torch.stack([t, t], -1)[..., 0],
        "offset": lambda t: torch.cat([t[:1], t])[1:],
    }
    for name, lay in strange.items():
        for which in range(3):
            tensors = [case.x_adv.clone(), case.grad, case.x]
            tensors[which] = lay(tensors[which])
            got = ops.step_(*tensors, **settings)
            assert got is tensors[0]
            if order == "linf":
                assert torch.equal(got, expected), name
            else:  # sums run in another order
                assert_near(got, expected, 108, 2.0)
    grad = torch.ones(1).expand(4, 3, 6, 6)
    got = ops.step_(case.x_adv.clone(), grad, case.x, **settings)
    expected = ops.step_(case.x_adv.clone(), grad.contiguous(), case.x, **settings)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_empty_batches(order: str) -> None:
    for shape in ((0, 3, 4, 4), (2, 3, 0), (0,)):
        x = torch.empty(shape)
        assert ops.step_(x, x.clone(), x.clone(), ball=BALLS[order](0.1), step_size=1.0) is x
    x, number = torch.empty(0, 3), torch.tensor(0.1)
    OP[order](x, x.clone(), x.clone(), number, number, None, True, *ORDERS[order])


def test_slide_moves_the_share_of_largest_gradients() -> None:
    grad = torch.tensor([[0.0, 3.0, -2.0, 1.0, -5.0, 0.5, 4.0, -0.1, 0.2, 0.3]])
    x = torch.zeros_like(grad)
    got = ops.step_(x.clone(), grad, x, ball=fa.L1(9.0, None), step_size=1.0, top=0.3)
    expected = torch.tensor([[0, 1, 0, 0, -1, 0, 1, 0, 0, 0]]) / 3
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    ties = ops.step_(x.clone(), x + 1, x, ball=fa.L1(9.0, None), step_size=1.0, top=0.1)
    torch.testing.assert_close(ties, x + 0.1, rtol=1e-6, atol=0)  # equal gradients move together


def test_a_nan_in_one_sample_stays_in_it() -> None:
    case = make((3, 20), torch.float32, "one")
    spoiled = case.grad.clone()
    spoiled[1, 4] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order, ball in BALLS.items():
            settings = {"ball": ball(0.2), "step_size": 0.1}
            got = ops.step_(case.x_adv.clone(), spoiled, case.x, **settings)
            expected = ops.step_(case.x_adv.clone(), case.grad, case.x, **settings)
            assert torch.equal(got[[0, 2]], expected[[0, 2]]), order
