"""The universal steps against the reference in float64; uniform and digest bit for bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerance import DTYPES, assert_in_ball, assert_near, bits
from torch import Tensor

from fastadv import reference
from fastadv.kernels import tiles, universal
from fastadv.kernels.digest import digest
from fastadv.kernels.uniform import uniform, uniform_from

MORE = {"linf": (), "l2": (), "l1": (0.2,)}
OP = {order: getattr(universal, f"universal_{order}_") for order in MORE}


def arguments(shape: tuple[int, ...], dtype: torch.dtype, n: int, seed: int) -> list[Tensor | None]:
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", MORE)
def test_universal_is_its_reference_in_float64(order: str, dtype: torch.dtype) -> None:
    """Batches of up to 37: by one program a column, and by several."""
    step = getattr(reference, f"step_{order}_")
    flags = list(itertools.product((True, False), repeat=4))[DTYPES.index(dtype) :: 4]
    for seed, (weighted, moving, signs, steepest) in enumerate(flags):
        for shape in ((1,), (3, 5, 5), (600,)):
            args = arguments(shape, dtype, (1, 5, 37)[seed % 3], seed)
            args[1] = args[1] if moving else None
            args[3] = args[3] if weighted else None
            expected = [None if a is None else a.double() for a in args]
            rule = (0.9, signs, steepest, *MORE[order])
            reference.universal_(step, *expected, *rule)
            assert OP[order](*args, *rule) is None
            size = args[2].numel()
            assert_near(args[0], expected[0], size, 1.0 if steepest else 16.0)
            if moving:
                assert_near(args[1], expected[1], size, 1.0)
            assert_in_ball(args[0][None], torch.zeros_like(args[0])[None], args[5], order)


def test_universal_linf_is_its_reference_to_the_bit() -> None:
    """Signs are counted exactly, so that nothing is left to the order of a sum."""
    for dtype in DTYPES:
        delta, _, grads, _, step, radius = arguments((3, 5, 5), dtype, 21, 1)
        expected = delta.clone()
        tail = (step, radius, 0.0, True, True)
        reference.universal_(reference.step_linf_, expected, None, grads, None, *tail)
        universal.universal_linf_(delta, None, grads, None, *tail)
        assert torch.equal(bits(delta), bits(expected))


def test_a_sum_over_a_batch_loses_nothing_and_is_the_same_however_it_is_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grads = torch.tensor([1e8, 1e-3, -1e8]).reshape(3, 1).repeat(1, 9)
    number = torch.tensor(0.5)
    for parts, share in ((1, 3), (2, 2), (3, 1)):
        walk = tiles.Walk(tiles.Tile(16, 1), parts, share)
        monkeypatch.setattr(tiles, "batch", lambda *_, walk=walk: walk)
        delta = torch.zeros(9)
        universal.universal_linf_(delta, None, grads, None, number, number, 0.0, False, True)
        assert delta.tolist() == [0.5] * 9


def test_a_sample_of_weight_0_is_left_out_whatever_its_gradient() -> None:
    grads = torch.tensor([[1.0, 2.0], [math.inf, math.nan]])
    delta, number = torch.zeros(2), torch.tensor(0.1)
    weights = torch.tensor([1.0, 0.0])
    universal.universal_linf_(delta, None, grads, weights, number, number, 0.0, False, True)
    assert torch.equal(delta, number.expand(2))


def test_no_samples_and_no_elements() -> None:
    number = torch.tensor(0.1)
    for order, op in OP.items():
        delta = torch.full((4,), 0.05)
        op(delta, None, torch.empty(0, 4), None, number, number, 0.0, False, True, *MORE[order])
        assert_in_ball(delta[None], torch.zeros(1, 4), number, order)
        op(torch.empty(0), None, torch.empty(3, 0), None, number, number, 0.0, False, True,
           *MORE[order])  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    good = arguments((6,), torch.float32, 4, 0)
    delta, velocity, grads, weights, *_ = good
    for at, bad, message in (
        (0, delta[:5].clone(), "`delta` must be one sample of `grads`"),
        (0, delta.double(), "`delta` must be float32, got float64"),
        (0, grads[0], "`delta` is updated in place and must share no memory with `grads`"),
        (1, velocity.bfloat16(), "`velocity` must be float32, got bfloat16"),
        (1, delta, "`velocity` is updated in place and must share no memory with `delta`"),
        (2, grads.t().contiguous().t(), "`grads` must be contiguous"),
        (3, weights[:3].clone(), r"`weights` must be \(4,\), got \(3,\)"),
    ):
        args = [*good[:at], bad, *good[at + 1 :]]
        with pytest.raises((TypeError, ValueError), match=message):
            universal.universal_linf_(*args, 0.0, False, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_uniform_and_digest_are_their_references_to_the_bit(dtype: torch.dtype) -> None:
    for shape in ((3, 7), (2, 3, 16, 16), (1, 5000), (4,), (2, 33), (0, 3), (2, 0)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        for seed, offset, stream in ((0, 0, 0), (2**63 + 12345, 2**33 + 5, 3), (-5, 7, 2**32 + 1)):
            expected = reference.uniform(x, seed, offset, stream)
            assert torch.equal(uniform(x, seed, offset, stream), expected)
        state = torch.tensor([77, 2**40])
        assert torch.equal(uniform_from(x, state, 1), reference.uniform(x, 77, 2**40, 1))
        if x.numel():
            assert torch.equal(digest(x), reference.digest(x))
        else:
            assert torch.equal(digest(x), torch.zeros(len(x), dtype=torch.long))
    last = torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(digest(last), reference.digest(last))


def test_the_state_of_uniform_is_checked() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"`state` must be \(2,\), seed and offset, got \(3,\)"):
        uniform_from(x, torch.zeros(3, dtype=torch.long), 0)
    with pytest.raises(TypeError, match="`state` must be int64, got float32"):
        uniform_from(x, torch.zeros(2), 0)
