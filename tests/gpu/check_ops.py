"""Every op on the device against its definition on the CPU: linf to the bit, sums in float64."""

from __future__ import annotations

import head_cases
import pytest
import torch
from cases import Case, make
from gpu_plugin import DEVICE
from tolerance import DTYPES, assert_in_ball, assert_in_box, assert_near, bits, tolerance

import fastadv as fa
from fastadv import reference

# A row of one number, odd rows, one of a few programs, one beyond every register, and a batch.
SHAPES = ((4,), (3, 7), (2, 1000), (5, 3, 17, 17), (2, 3, 96, 96), (1, 200_001), (64, 3, 32, 32))
BALLS = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}
RULES = {"linf": (), "l2": (), "l1": (0.2,)}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
orders = pytest.mark.parametrize("order", BALLS)


def cases(dtype: torch.dtype) -> list[Case]:
    found = []
    for shape in SHAPES:
        for bounds in ("none", "one", "each") if len(shape) > 1 else ("none", "one"):
            for last in (False, True) if len(shape) == 4 else (False,):
                found.append(make(shape, dtype, bounds, last=last, per_sample=len(found) % 2 == 0))
    return found


def on_device(case: Case) -> list[torch.Tensor | None]:
    return [None if t is None else t.to(DEVICE) for t in case.args()]


@dtypes
@orders
def test_a_step_is_its_definition(order: str, dtype: torch.dtype) -> None:
    op, definition = getattr(torch.ops.fastadv, f"step_{order}_"), f"step_{order}_"
    for case in cases(dtype):
        for steepest in (True, False):
            args = on_device(case)
            op(*args, steepest, *RULES[order])
            got = args[0].cpu()
            size = case.x[0].numel()
            if order == "linf":
                expected = case.args()
                reference.step_linf_(*expected, steepest)
                assert torch.equal(bits(got), bits(expected[0])), tuple(case.x.shape)
            elif steepest:
                expected = case.double().args()
                getattr(reference, definition)(*expected, steepest, *RULES[order])
                assert_near(got, expected[0], size, 2.0)
            assert got.stride() == case.x.stride()
            assert_in_box(got, *case.box())
            delta, radius = got.double() - case.x.double(), case.radius.double()
            room = 1 + 2 * size * 2.0**-53  # of the norm's own sum; exact below, on a few
            assert bool((fa_norm(order, delta) <= radius * room).all())


def fa_norm(order: str, delta: torch.Tensor) -> torch.Tensor:
    return BALLS[order](1.0).norm(delta)


@dtypes
@orders
def test_the_radius_and_the_box_hold_exactly(order: str, dtype: torch.dtype) -> None:
    case = make((6, 3, 9, 9), dtype, "each")
    ball = BALLS[order](0.3)
    radius = case.radius.to(DEVICE)
    for scale in (1e-30, 1.0, 1e4):
        most = torch.finfo(dtype).max
        grad = (case.grad.double() * scale).clamp(-most, most).to(dtype).to(DEVICE)
        x, x_adv = case.x.to(DEVICE), case.x_adv.to(DEVICE)
        fa.ops.step_(x_adv, grad, x, ball=ball, step_size=0.2, radius=radius)
        assert_in_ball(x_adv.cpu(), case.x, case.radius, order)
        assert_in_box(x_adv.cpu(), 0.0, 1.0)
        again = fa.ops.project_(x_adv.clone(), x, ball=ball, radius=radius)
        assert order != "linf" or torch.equal(again, x_adv)
        assert torch.equal(x.cpu(), case.x)


@dtypes
@orders
def test_nothing_moves_without_a_gradient(order: str, dtype: torch.dtype) -> None:
    x = make((5, 3, 8, 8), dtype).x.to(DEVICE)
    x_adv = x.clone()
    fa.ops.step_(x_adv, torch.zeros_like(x), x, ball=BALLS[order](0.3), step_size=0.1)
    assert torch.equal(bits(x_adv), bits(x))


@dtypes
@orders
def test_a_universal_step_is_its_definition(order: str, dtype: torch.dtype) -> None:
    wide = reference.compute_dtype(dtype)
    for shape, n in (((7,), 5), ((3, 17, 17), 33), ((3, 64, 64), 8), ((70_001,), 3)):
        g = torch.Generator().manual_seed(n)
        delta = (torch.rand(shape, generator=g) - 0.5).to(dtype)
        grads = torch.randn(n, *shape, generator=g).to(dtype)
        velocity = torch.zeros(shape, dtype=wide)
        size, radius = torch.tensor(0.1, dtype=wide), torch.tensor(0.4, dtype=wide)
        op = getattr(torch.ops.fastadv, f"universal_{order}_")
        results = []
        for _ in range(2):
            args = [t.clone().to(DEVICE) for t in (delta, velocity, grads, size, radius)]
            op(*args[:3], None, *args[3:], 0.9, False, True, *RULES[order])
            results.append([t.cpu() for t in args[:2]])
        assert torch.equal(bits(results[0][0]), bits(results[1][0]))  # no atomics
        expected = [t.double() for t in (delta, velocity, grads, size, radius)]
        step = getattr(reference, f"step_{order}_")
        reference.universal_(
            step, *expected[:3], None, *expected[3:], 0.9, False, True, *RULES[order]
        )
        assert_near(results[0][1], expected[1], n, 1.0)
        assert_in_ball(results[0][0][None], torch.zeros(1, *shape, dtype=dtype), radius, order)
        if order != "linf":  # a sum near 0 may turn its sign
            assert_near(results[0][0], expected[0], delta.numel(), 2.0)
        else:
            sums = grads.double().sum(0).abs()
            clear = sums > 1e-3 * sums.max()
            assert_near(results[0][0][clear], expected[0][clear], n, 2.0)


@dtypes
@pytest.mark.parametrize(("head", "targeted"), head_cases.FORMS)
def test_a_head_is_its_definition(head: int, targeted: bool, dtype: torch.dtype) -> None:
    for samples, classes in ((3, 4), (65, 10), (8, 1000), (2, 33_000)):
        case = head_cases.make(head, targeted, dtype, samples, classes)
        args = (case.logits.to(DEVICE), case.y.to(DEVICE),
                None if case.target is None else case.target.to(DEVICE))  # fmt: skip
        got = [t.cpu() for t in torch.ops.fastadv.head(*args, head, targeted)]
        expected = case.expected()
        scale = max(1.0, float(expected[0].abs().max()))
        room = 64 * tolerance(dtype, classes) * scale
        assert float((got[0].double() - expected[0]).abs().max()) <= room
        largest = max(1.0, float(expected[1].abs().max()))
        assert float((got[1].double() - expected[1]).abs().max()) <= room * largest
        assert torch.equal(got[2], expected[2])


@dtypes
def test_random_numbers_and_digests_are_the_cpus_bits(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = make(shape, dtype).x
        ours = fa.ops.uniform(x.to(DEVICE), 12345, 7, 3).cpu()
        assert torch.equal(bits(ours), bits(reference.uniform(x, 12345, 7, 3)))
        if len(shape) > 1:
            assert torch.equal(fa.ops.digest(x.to(DEVICE)).cpu(), reference.digest(x))
    last = make((3, 3, 9, 9), dtype, last=True).x
    assert torch.equal(fa.ops.digest(last.to(DEVICE)).cpu(), reference.digest(last))
