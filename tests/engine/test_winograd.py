"""The engine's ops: against convolutions in float64, their reference, and themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastadv
from fastadv.engine import calls, reference
from fastadv.engine.reference_activations import RELU
from fastadv.engine.reference_winograd import (
    PLAIN,
    STRIDED,
    STRIDED_GRADIENT,
    learn_scratch,
    winograd_,
    winograd_weights,
)

ops = torch.ops.fastadv
native = pytest.mark.skipif(not fastadv.backend().is_native, reason="no compiled kernels")


def images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n, channels, height, width = shape
    rows = torch.randn(n, height, width, channels, generator=generator)
    return rows.permute(0, 3, 1, 2)


def kernel(outputs: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5


def y_of(form: int, pixels: int) -> int:
    """How many pixels y has with padding 1."""
    return (pixels, (pixels + 1) // 2, 2 * pixels - 1)[form]


def close(found: Tensor, exact: Tensor) -> None:
    """The sums of F(4x4,3x3) pass through numbers up to 100 times the result's size."""
    assert found.shape == exact.shape
    size = float(exact.square().mean().sqrt()) if exact.numel() else 0.0
    assert float((found - exact).abs().max()) <= 5e-5 * max(size, 1e-3)


# padding 3 stands for a stride of 2, whose padding is 1.
sizes = st.tuples(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 19),
    st.integers(1, 19), st.integers(0, 3), st.booleans(), st.booleans(),
).filter(lambda s: s[5] or min(s[3], s[4]) > 2)  # fmt: skip


@given(sizes)
@settings(max_examples=50, deadline=None)
def test_convolution_and_its_gradient_are_float64s(
    size: tuple[int, int, int, int, int, int, bool, bool],
) -> None:
    n, channels, outputs, height, width, padding, biased, added = size
    strided, padding = padding == 3, padding % 3 or int(padding == 3)
    stride, (form, back) = 1 + strided, (STRIDED, STRIDED_GRADIENT) if strided else (PLAIN, PLAIN)
    x, w = images(n, channels, height, width), kernel(outputs, channels)
    bias = torch.linspace(-1, 1, outputs) if biased else None
    shift = None if bias is None else bias.double()
    exact = F.conv2d(x.double(), w.double(), shift, stride, padding)
    residual = images(*exact.shape, seed=2) if added else None
    grad = images(*exact.shape, seed=3)
    exact = exact if residual is None else exact + residual
    packed = winograd_weights(w, None, False, strided)
    pixels = exact.shape[2:]
    y = calls.convolve(x, packed, bias, residual, outputs, pixels, padding, form)
    close(y, exact)
    rectified, signs = calls.convolve_activated(
        x, packed, bias, residual, outputs, pixels, padding, form
    )
    assert torch.equal(rectified, y.relu())
    assert torch.equal(reference.unpack_signs(signs, outputs).permute(0, 3, 1, 2), y > 0)

    turned = winograd_weights(w, None, True, strided)
    sum_with = images(*x.shape, seed=4) if added else None
    mask = reference.pack_signs(torch.randn(n, height, width, channels) > 0)
    around = padding if strided else 2 - padding
    found = calls.convolve_gradient(
        grad, turned, sum_with, mask, channels, (height, width), around, back
    )
    exact = torch.nn.grad.conv2d_input(x.shape, w.double(), grad.double(), stride, padding)
    exact = exact if sum_with is None else exact + sum_with
    passed = reference.unpack_signs(mask, channels).permute(0, 3, 1, 2)
    close(found, torch.where(passed, exact, 0.0))


@native
@pytest.mark.parametrize("shape", [(2, 5, 9, 7, 17), (1, 64, 8, 8, 64), (3, 33, 4, 6, 20)])
@pytest.mark.parametrize("form", [PLAIN, STRIDED, STRIDED_GRADIENT])
def test_the_kernel_is_its_reference(shape: tuple[int, int, int, int, int], form: int) -> None:
    n, channels, height, width, outputs = shape
    x, w = images(n, channels, height, width).permute(0, 2, 3, 1), kernel(outputs, channels)
    rows, columns = y_of(form, height), y_of(form, width)
    packed = winograd_weights(w, torch.linspace(0.5, 2, outputs), False, form != PLAIN)
    bias, residual = torch.randn(outputs), torch.randn(n, rows, columns, outputs)
    results = []
    for op in (ops.winograd_, winograd_):
        y = torch.full((n, rows, columns, outputs), torch.nan)
        signs = torch.zeros(n, rows, columns, reference.sign_bytes(outputs), dtype=torch.uint8)
        op(y, signs, x, packed, bias, residual, 1, form, *RELU, [])
        results.append((y, signs))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=5e-5)
    either = results[0][0].minimum(results[1][0]) > 1e-4
    both = [reference.unpack_signs(signs, outputs) for _, signs in results]
    assert torch.equal(both[0] & either, both[1] & either)


@native
@pytest.mark.parametrize(("outputs", "channels"), [(1, 1), (16, 3), (33, 20), (64, 48)])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_weights_are_their_reference(
    outputs: int, channels: int, gradient: bool, scaled: bool, strided: bool
) -> None:
    w, scale = kernel(outputs, channels), torch.linspace(0.5, 2, outputs) if scaled else None
    found = calls.winograd_weights(w, scale, gradient, strided, False)
    expected = winograd_weights(w.double(), scale, gradient, strided)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, check_dtype=False)


@native
@pytest.mark.parametrize("form", [PLAIN, STRIDED, STRIDED_GRADIENT])
def test_a_sample_has_the_same_bits_in_any_batch_and_with_any_threads(form: int) -> None:
    x, size = images(33, 96, 8, 8), (y_of(form, 8),) * 2
    packed = winograd_weights(kernel(144, 96), None, False, form != PLAIN)
    whole = calls.convolve(x, packed, None, None, 144, size, 1, form)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(5, 8), slice(2, 33)):
                alone = calls.convolve(x[part], packed, None, None, 144, size, 1, form)
                assert torch.equal(alone, whole[part])
    finally:
        torch.set_num_threads(threads)


def test_nan_passes_the_relu_and_its_mask() -> None:
    x = torch.tensor([torch.nan, -1.0, 0.0, 2.0, -torch.inf]).reshape(1, 5, 1, 1)
    y, signs = calls.activate(x)
    torch.testing.assert_close(y, x.relu(), rtol=0, atol=0, equal_nan=True)
    grad = torch.full_like(x, torch.nan)
    expected = torch.ops.aten.threshold_backward(grad, x.relu(), 0)
    torch.testing.assert_close(calls.times_slopes(grad, None, signs), expected, equal_nan=True)


@given(st.integers(1, 3), st.integers(1, 50), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_relu_and_mask(n: int, channels: int, side: int, added: bool) -> None:
    x = images(n, channels, side, side)
    residual = images(n, channels, side, side, seed=1) if added else None
    total = x if residual is None else x + residual
    y, signs = calls.activate(x, residual)
    assert torch.equal(y, total.relu())
    assert torch.equal(calls.times_slopes(x, residual, signs), torch.where(total > 0, total, 0))


@native
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 8192 * 8, 3 * 8192 * 8 + 13])
def test_fingerprint_is_its_reference_and_sees_each_bit(size: int) -> None:
    x = torch.randint(0, 256, (size,), dtype=torch.uint8)
    before = ops.fingerprint(x)
    assert before == reference.fingerprint(x)
    for place in {0, size // 2, size - 1} if size else ():
        x[place] ^= 16
        assert ops.fingerprint(x) != before
        x[place] ^= 16


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 4, 4, 9)}, "`weights` must be contiguous"),
        ({"bias": torch.zeros(3)}, "`bias` must be contiguous"),
        ({"residual": torch.zeros(1, 4, 4, 9)}, "`residual` must be"),
        ({"kept": torch.zeros(1, 4, 4, 1, dtype=torch.uint8), "activation": 1}, "`kept` must be"),
        ({"kept": torch.zeros(1, 4, 4, 9), "activation": 7}, "`kept` must be"),
        ({"kept": torch.zeros(1, 4, 4, 8)}, "without an activation"),
        ({"activation": 14}, "`activation` must be 0 to 13, got 14"),
        ({"numbers": [1.0]}, "`numbers` must be 0, got 1"),
        ({"activation": 8, "numbers": [1.0]}, "`numbers` must be 3, got 1"),
        ({"padding": 3}, "`padding` must be 0, 1 or 2"),
        ({"form": 3}, "`form` must be 0, 1 or 2"),
        ({"form": STRIDED}, "`y` must have the pixels"),
        ({"form": STRIDED_GRADIENT}, "`y` must have the pixels"),
        ({"form": STRIDED, "padding": 0}, "with a stride 1, got 0"),
        ({"y": torch.zeros(1, 4, 4, 8).double()}, "`y` must be"),
    ],
)
def test_what_would_leave_the_memory_raises(change: dict[str, object], message: str) -> None:
    given_ = {
        "y": torch.zeros(1, 4, 4, 8), "kept": None, "x": torch.zeros(1, 4, 4, 5),
        "weights": winograd_weights(kernel(8, 5), None, False), "bias": None,
        "residual": None, "padding": 1, "form": PLAIN, "activation": 0, "numbers": [],
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        ops.winograd_(*(given_ | change).values())


def test_schema_and_fake_of_a_gradient_by_weights() -> None:
    x, grad = torch.randn(2, 4, 4, 5), torch.randn(2, 4, 4, 7)
    torch.library.opcheck(
        ops.winograd_weight_gradient_.default,
        (torch.zeros(7, 5, 3, 3), torch.zeros(learn_scratch(x, grad)), x, grad, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    "op", ["winograd_", "winograd_gradient_", "activate_", "activate_gradient_"]
)
def test_schema_and_fake(op: str) -> None:
    y, x = torch.zeros(1, 4, 4, 8), torch.randn(1, 4, 4, 8)
    signs = torch.zeros(1, 4, 4, 2, dtype=torch.uint8)
    packed = winograd_weights(kernel(8, 8), None, False)
    args = {
        "winograd_": (y, signs, x, packed, None, None, 1, PLAIN, *RELU, []),
        "winograd_gradient_": (y, x, packed, None, signs, 0.5, 1, PLAIN),
        "activate_": (y, signs, x, x, None, None, *RELU, []),
        "activate_gradient_": (y, x, signs, 0.5, None, None, None),
    }
    torch.library.opcheck(
        getattr(ops, op).default, args[op], test_utils=("test_schema", "test_faketensor")
    )
