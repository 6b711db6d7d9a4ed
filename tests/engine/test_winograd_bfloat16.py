"""Winograd's convolutions with products of bfloat16 numbers, summed in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastadv as fa
from fastadv.engine import calls
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_winograd import (
    PLAIN,
    STRIDED,
    STRIDED_GRADIENT,
    winograd_,
    winograd_weights,
)

ops = torch.ops.fastadv
pytestmark = pytest.mark.skipif(not multiplies_bfloat16(), reason="no products of bfloat16 here")

SHAPES = [(2, 5, 9, 7, 17), (1, 64, 8, 8, 64), (3, 33, 4, 6, 20), (1, 1, 5, 5, 1)]


def kernel(outputs: int, channels: int) -> torch.Tensor:
    return torch.randn(outputs, channels, 3, 3) / (9 * channels) ** 0.5


FORMS = [PLAIN, STRIDED, STRIDED_GRADIENT]


def y_of(form: int, pixels: int) -> int:
    """How many pixels y has with padding 1."""
    return (pixels, (pixels + 1) // 2, 2 * pixels - 1)[form]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_is_its_reference(shape: tuple[int, int, int, int, int], form: int) -> None:
    n, channels, height, width, outputs = shape
    x, bias = torch.randn(n, height, width, channels), torch.randn(outputs)
    packed = winograd_weights(kernel(outputs, channels), None, False, form != PLAIN, True)
    results = []
    for op in (ops.winograd_, winograd_):
        y = torch.full((n, y_of(form, height), y_of(form, width), outputs), torch.nan)
        op(y, None, x, packed, bias, None, 1, form, 0, [])
        results.append(y)
    # Transforms differ by a rounding of float32, which moves a few of them to the next bfloat16.
    assert (results[0] - results[1]).square().mean().sqrt() <= 2e-3 * results[1].std() + 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_near_float64s(
    shape: tuple[int, int, int, int, int], gradient: bool, stride: int
) -> None:
    n, channels, height, width, outputs = shape
    w, form = kernel(outputs, channels), stride - 1 + (gradient and stride == 2)
    inputs, results = (outputs, channels) if gradient else (channels, outputs)
    size = y_of(form, height), y_of(form, width)
    x = torch.randn(n, height, width, inputs).permute(0, 3, 1, 2)
    packed = calls.winograd_weights(w, None, gradient, stride == 2, True)
    found = calls.convolve(x, packed, None, None, results, size, 1, form)
    run = F.conv_transpose2d if gradient else F.conv2d
    exact = run(x.double(), w.double(), stride=stride, padding=1)
    assert (found - exact).square().mean().sqrt() <= 0.05 * exact.square().mean().sqrt()


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_weights_are_their_reference(gradient: bool, strided: bool) -> None:
    w, scale = kernel(33, 21), torch.linspace(0.5, 2, 33)
    found = calls.winograd_weights(w, scale, gradient, strided, True)
    expected = winograd_weights(w, scale, gradient, strided, True)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)  # the next bfloat16 at most


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_has_the_same_bits_in_any_batch(form: int) -> None:
    x, size = torch.randn(33, 8, 8, 96).permute(0, 3, 1, 2), (y_of(form, 8),) * 2
    packed = calls.winograd_weights(kernel(144, 96), None, False, form != PLAIN, True)
    whole = calls.convolve(x, packed, None, None, 144, size, 1, form)
    for part in (slice(0, 1), slice(5, 8), slice(2, 33)):
        alone = calls.convolve(x[part], packed, None, None, 144, size, 1, form)
        assert torch.equal(alone, whole[part])


def test_denormals_flushed_or_not_the_pairs_are_whole() -> None:
    """(1, 0) as a pair has the bits of a denormal float32."""
    x, w = torch.randn(1, 8, 8, 2).permute(0, 3, 1, 2), kernel(16, 2)
    packed = calls.winograd_weights(w, None, False, False, True)
    call = (x, packed, None, None, 16, (8, 8), 1, PLAIN)
    expected = calls.convolve(*call)
    torch.set_flush_denormal(True)
    try:
        assert torch.equal(calls.convolve(x, packed, None, None, 16, (8, 8), 1, PLAIN), expected)
    finally:
        torch.set_flush_denormal(False)


def test_a_model_says_and_uses_it() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(), nn.Conv2d(16, 5, 3, padding=1),
    ).eval()  # fmt: skip
    x = torch.randn(4, 8, 8, 8, requires_grad=True)
    fast = fa.compile(model, precision="bfloat16")
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    assert str(fast.report()).count("winograd, bfloat16") == 5  # the last gradient reads 5 channels
    cosine = F.cosine_similarity(found.flatten(1), exact.flatten(1))
    assert 0.98 < cosine.min() < 1 - 1e-7, "near the gradient, and not float32's"
