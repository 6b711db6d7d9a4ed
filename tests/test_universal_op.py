"""The universal step: accumulate over the batch, momentum, step, project."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import threads
from tolerance import DTYPES, assert_in_ball, assert_near, bits

import fastadv as fa
from fastadv import ops, reference

BALLS = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}
OP = {order: getattr(torch.ops.fastadv, f"universal_{order}_") for order in BALLS}
SHAPES = ((1,), (7,), (3, 5, 5), (600,))


def arguments(order: str, shape: tuple[int, ...], dtype: torch.dtype, n: int, seed: int) -> list:
    """(delta, velocity, grads, weights, step_size, radius) of one call; a weight is 0."""
    g = torch.Generator().manual_seed(seed)
    wide = reference.compute_dtype(dtype)
    delta = (torch.rand(shape, generator=g) - 0.5).to(dtype)
    grads = torch.randn(n, *shape, generator=g).to(dtype)
    weights = torch.rand(n, generator=g).to(wide)
    weights[0] = 0
    velocity = torch.randn(shape, generator=g).to(wide) / delta.numel()
    step, radius = torch.tensor(0.1, dtype=wide), torch.tensor(0.4, dtype=wide)
    return [delta, velocity, grads, weights, step, radius]


def double(args: list) -> list:
    return [None if a is None else a.double().clone() for a in args]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", BALLS)
def test_op_is_its_reference_in_float64(order: str, dtype: torch.dtype) -> None:
    more = (0.2,) if order == "l1" else ()
    step = getattr(reference, f"step_{order}_")
    flags = itertools.product((True, False), (True, False), (True, False), (True, False))
    for seed, (weighted, moving, signs, steepest) in enumerate(flags):
        for shape in SHAPES:
            args = arguments(order, shape, dtype, 1 + seed % 6, seed)
            args[1] = args[1] if moving else None
            args[3] = args[3] if weighted else None
            expected = double(args)
            rule = (0.9, signs, steepest, *more)
            reference.universal_(step, *expected, *rule)
            assert OP[order](*args, *rule) is None
            size = args[2].numel()
            assert_near(args[0], expected[0], size, 1.0 if steepest else 8.0)
            if moving:
                assert_near(args[1], expected[1], size, 1.0)
            assert_in_ball(args[0][None], torch.zeros_like(args[0])[None], args[5], order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linf_is_its_reference_to_the_bit(dtype: torch.dtype) -> None:
    """Signs are counted exactly, so that nothing is left to the order of a sum."""
    for shape in SHAPES:
        delta, _, grads, _, step, radius = arguments("linf", shape, dtype, 5, 1)
        expected = delta.clone()
        tail = (step, radius, 0.0, True, True)
        reference.universal_(reference.step_linf_, expected, None, grads, None, *tail)
        OP["linf"](delta, None, grads, None, *tail)
        assert torch.equal(bits(delta), bits(expected))


def test_by_hand() -> None:
    grads = torch.tensor([[1.0, -4.0, 0.0], [2.0, 1.0, 0.0]])
    delta, velocity = torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    ops.universal_(delta, grads, ball=fa.Linf(1.0), step_size=0.25)
    assert delta.tolist() == [0.25, -0.25, 0.0]  # the sum is (3, -3, 0)
    ops.universal_(delta, grads, ball=fa.Linf(1.0), step_size=0.25, signs=True)
    assert delta.tolist() == [0.5, -0.25, 0.0]  # signs: (2, 0, 0)
    ops.universal_(delta, grads, ball=fa.Linf(1.0), step_size=0.25, weights=torch.tensor([2.0, 0]))
    assert delta.tolist() == [0.75, -0.5, 0.0]
    ops.universal_(delta, grads, ball=fa.Linf(1.0), step_size=0.5, velocity=velocity, momentum=0.5)
    assert velocity.tolist() == [0.5, -0.5, 0.5]
    assert delta.tolist() == [1.0, -1.0, 0.5]  # and the radius of 1 holds
    ops.universal_(delta, grads, ball=fa.Linf(1.0), step_size=0.1, steepest=False)
    torch.testing.assert_close(delta, torch.tensor([1.0, -1.0, 0.5]))


def test_a_sample_of_weight_0_is_left_out_whatever_its_gradient() -> None:
    grads = torch.tensor([[1.0, 2.0], [math.inf, math.nan]])
    for ball in BALLS.values():
        delta = torch.zeros(2)
        ops.universal_(
            delta, grads, ball=ball(1.0), step_size=0.1, weights=torch.tensor([1.0, 0.0]), top=1.0
        )
        expected = ops.universal_(torch.zeros(2), grads[:1], ball=ball(1.0), step_size=0.1, top=1.0)
        assert torch.equal(delta, expected)
        assert bool((delta > 0).all())


@pytest.mark.parametrize("order", BALLS)
def test_results_do_not_depend_on_threads(order: str) -> None:
    more = (0.05,) if order == "l1" else ()
    for dtype in DTYPES:
        results = []
        for n in (1, 3):
            args = arguments(order, (3, 50, 47), dtype, 33, 2)
            with threads(n):
                OP[order](*args, 0.9, False, True, *more)
            results.append(args)
        for which in (0, 1):
            assert torch.equal(bits(results[0][which]), bits(results[1][which]))


def test_sum_of_a_large_batch_loses_nothing() -> None:
    """1e8 - 1e8 + 1e-3 is 0 in a float32 sum; in the float64 one that the op keeps it is not."""
    grads = torch.tensor([1e8, 1e-3, -1e8]).reshape(3, 1).repeat(1, 9)
    delta = ops.universal_(torch.zeros(9), grads, ball=fa.Linf(1.0), step_size=0.5)
    assert delta.tolist() == [0.5] * 9


@pytest.mark.parametrize("order", BALLS)
def test_memory_formats_and_empty_batches(order: str) -> None:
    delta, _, grads, weights, _, _ = arguments(order, (3, 4, 5), torch.float32, 6, 3)
    settings = {"ball": BALLS[order](0.4), "step_size": 0.1, "weights": weights}
    expected = ops.universal_(delta.clone(), grads, **settings)
    last = grads.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.universal_(delta.clone(), last, **settings), expected)
    strided = torch.stack([delta, delta], -1)[..., 0]
    assert torch.equal(ops.universal_(strided, grads, **settings), expected)
    before = delta.clone()
    ops.universal_(delta, grads[:0], ball=BALLS[order](0.4), step_size=0.1)
    assert torch.equal(delta, before)
    nothing = torch.empty(0)
    ops.universal_(nothing, torch.empty(4, 0), ball=BALLS[order](0.4), step_size=0.1)
