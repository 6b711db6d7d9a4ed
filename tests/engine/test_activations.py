"""Activations: their values and slopes, wherever a kernel computes them."""

from __future__ import annotations

import isas
import pytest
import torch
from activation_cases import ALL, each
from torch import Tensor

import fastadv as fa
from fastadv.engine import calls, reference, reference_activations, spread
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_direct import Geometry, direct_weights
from fastadv.engine.reference_winograd import PLAIN, STRIDED, STRIDED_GRADIENT
from fastadv.engine.spread import spread_weights

ops = torch.ops.fastadv
PRECISIONS = [False, True] if multiplies_bfloat16() else [False]
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


def points() -> Tensor:
    """Dense near 0, where slopes bend, and far out; (N, C, H, W), with lanes to spare."""
    bends = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, -0.5, 1.5, 20.0, 20.1, 88.0, -88.0, 1e4, -1e4]
    z = torch.cat([torch.tensor(bends), torch.linspace(-30, 30, 2001), torch.logspace(-9, 1, 500)])
    z = torch.cat([z, -torch.logspace(-9, 1, 500)])
    return z[: len(z) // 63 * 63].reshape(-1, 3, 1, 21).permute(0, 3, 1, 2)


@each
def test_values_and_slopes_are_float64s(name: str) -> None:
    run, activation = ALL[name]
    z, grad = points(), torch.ones_like(points())
    y, kept = calls.activate(z, None, activation)
    leak = activation[1] if name.startswith("leaky") else 0.0
    assert kept is not None
    assert kept.dtype == (torch.uint8 if kept.shape[3] == 4 else torch.float32)
    slopes = calls.times_slopes(grad, None, kept, leak)
    leaf = z.double().requires_grad_()
    exact = run(leaf)
    (back,) = torch.autograd.grad(exact, leaf, grad.double())
    torch.testing.assert_close(y.double(), exact.detach(), rtol=1e-6, atol=3e-7)
    torch.testing.assert_close(slopes.double(), back, rtol=0, atol=2e-6 * max(1, abs(leak)))


@each
def test_what_is_no_number_stays_none(name: str) -> None:
    run, activation = ALL[name]
    z = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0]).reshape(1, 4, 1, 1)
    y, _ = calls.activate(z, None, activation)
    assert y[0, 0].isnan()
    expected = run(z)
    known = expected.isfinite() | (expected == torch.inf)  # torch's silu(-inf) is NaN
    torch.testing.assert_close(y[known], expected[known])


@native
@each
@pytest.mark.parametrize("affine", [False, True])
def test_the_kernels_are_their_references(name: str, affine: bool) -> None:
    (number, *numbers), grad = ALL[name][1], torch.randn(2, 3, 3, 21)
    x, other, more = torch.randn(3, 2, 3, 3, 21)
    scale, shift = torch.randn(2, 21) if affine else (None, None)
    results = []
    for run in (ops, reference_activations):
        y, back = torch.empty_like(x), torch.empty_like(x)
        kept = torch.zeros(2, 3, 3, 21)
        if reference_activations.has_two_slopes(int(number)):
            kept = torch.zeros(2, 3, 3, 4, dtype=torch.uint8)
        run.activate_(y, kept, x, other, scale, shift, int(number), numbers)
        run.activate_gradient_(back, grad, kept, 0.25, other, scale, more)
        bits = kept.dtype == torch.uint8  # those of lanes beyond the channels say nothing
        results.append((y, reference.unpack_signs(kept, 21) if bits else kept, back))
    torch.testing.assert_close(*results, rtol=1e-5, atol=4e-6)


def images(*shape: int) -> Tensor:
    n, channels, height, width = shape
    return torch.randn(n, height, width, channels).permute(0, 3, 1, 2)


def meant(kept: Tensor, y: Tensor) -> Tensor:
    """Without the bits of lanes beyond the channels, which say nothing."""
    return reference.unpack_signs(kept, y.shape[1]) if kept.dtype == torch.uint8 else kept


@native
@each
@pytest.mark.parametrize("bfloat16", PRECISIONS)
def test_a_layer_gives_the_bits_of_a_pass_of_its_own(name: str, bfloat16: bool) -> None:
    """With edge tiles, lanes to spare, and blocks that are cut by outputs."""
    activation = ALL[name][1]
    x, w, bias = images(2, 20, 7, 9), torch.randn(37, 20, 3, 3) / 10, torch.randn(37)

    def same(found: tuple[Tensor, Tensor | None], raw: Tensor) -> None:
        for mine, theirs in zip(found, calls.activate(raw, None, activation), strict=True):
            assert mine is not None
            assert torch.equal(meant(mine, raw), meant(theirs, raw))

    for stride, form in ((1, PLAIN), (2, STRIDED)):
        size = (7, 9) if stride == 1 else (4, 5)
        packed = calls.winograd_weights(w, None, False, stride == 2, bfloat16)
        call = (x, packed, bias, images(2, 37, *size), 37, size, 1, form)
        same(calls.convolve_activated(*call, activation), calls.convolve(*call))
        assert calls.convolve_activated(*call, activation, False)[1] is None
    geometry: Geometry = ((3, 3), (2, 2), (1, 1), (1, 1))
    straight = direct_weights(w, None, False, bfloat16)
    given = (x, straight, bias, images(2, 37, 4, 5), 37, (4, 5), geometry)
    same(calls.convolve_activated_directly(*given, activation), calls.convolve_directly(*given))
    wide = spread_weights(torch.randn(48, 32, 3, 3), None, False, bfloat16, (2, 2))
    small = (images(3, 32, 2, 2), wide, torch.randn(192), None, 48, (2, 2))
    same(spread.convolve_activated(*small, activation), spread.convolve(*small))


@pytest.mark.parametrize("leak", [None, 0.0, -0.5])  # None: slopes, not bits
def test_a_gradient_gives_the_bits_of_a_pass_of_its_own(leak: float | None) -> None:
    passed = torch.randn(2, 7, 9, 37)
    slopes = passed if leak is None else reference.pack_signs(passed > 0)
    last = leak or 0.0
    w, more, size = torch.randn(20, 37, 3, 3) / 10, images(2, 37, 7, 9), (7, 9)

    def same(found: Tensor, raw: Tensor) -> None:
        assert torch.equal(found, calls.times_slopes(raw, None, slopes, last))

    for stride, form in ((1, PLAIN), (2, STRIDED_GRADIENT)):
        grad = images(2, 20, *((7, 9) if stride == 1 else (4, 5)))
        turned = calls.winograd_weights(w, None, True, stride == 2, False)
        run = calls.convolve_gradient
        call = (37, size, 1, form)
        same(run(grad, turned, more, slopes, *call, last), run(grad, turned, more, None, *call))
    geometry: Geometry = ((3, 3), (2, 2), (1, 1), (1, 1))
    grad, back = images(2, 20, 4, 5), direct_weights(w, None, True, False)
    place = (37, size, geometry)
    same(
        calls.fold(grad, back, more, slopes, *place, last),
        calls.fold(grad, back, more, None, *place),
    )
    pooled, taken = calls.max_pool(more, (3, 4), (2, 2), (2, 2), (0, 0))
    window = (size, (2, 2), (2, 2), (0, 0))
    same(
        calls.max_pool_gradient(pooled, taken, more, slopes, *window, last),
        calls.max_pool_gradient(pooled, taken, more, None, *window),
    )


def test_an_infinite_gradient_where_the_slope_is_zero_is_none() -> None:
    z, grad = torch.full((1, 16, 1, 1), -100.0), torch.full((1, 16, 1, 1), torch.inf)
    for name in ("hardsigmoid", "hardswish", "relu", "relu6"):
        _, kept = calls.activate(z, None, ALL[name][1])
        assert kept is not None
        assert torch.equal(calls.times_slopes(grad, None, kept), torch.zeros_like(z))


@isas.others
def test_every_instruction_set(isa: str) -> None:
    isas.run_again(__file__, isa, "bits_of_a_pass or float64s or references")
