"""The direct convolution of any kernel, stride, padding and dilation, and its gradient."""

from __future__ import annotations

import pytest
import tables
import torch
import torch.nn.functional as F
from conftest import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import calls, reference, reference_direct, speeds
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_direct import Geometry, direct_weights

ops = torch.ops.fastadv
PRECISIONS = [False, True] if multiplies_bfloat16() else [False]

axis = st.tuples(
    st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 6)
)
convolutions = st.tuples(axis, axis, st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(n, height, width, channels).permute(0, 3, 1, 2)


def geometry_and_size(*axes: tuple[int, int, int, int, int]) -> tuple[Geometry, tuple[int, int]]:
    """Of a convolution whose input is at least as large as its kernel."""
    kernel, stride, padding, dilation, more = zip(*axes, strict=True)
    size = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + more[i] for i in range(2)]
    return (kernel, stride, padding, dilation), (size[0], size[1])


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@given(convolutions, st.booleans())
@settings(max_examples=40, deadline=None)
def test_convolution_and_its_gradient_are_float64s(
    bfloat16: bool, convolution: tuple[object, object, int, int, int], added: bool
) -> None:
    *axes, n, channels, outputs = convolution
    geometry, size = geometry_and_size(*axes)
    x = images(n, channels, *size)
    w = torch.randn(outputs, channels, *geometry[0]) / (channels * w_taps(geometry)) ** 0.5
    exact = F.conv2d(x.double(), w.double(), None, *geometry[1:])
    bias = torch.randn(outputs) if added else None
    residual = images(*exact.shape) if added else None
    exact = exact + bias[:, None, None] + residual if added else exact
    packed = direct_weights(w, None, False, bfloat16)
    place = (tuple(exact.shape[2:]), geometry)
    y = calls.convolve_directly(x, packed, bias, residual, outputs, *place)
    near(y, exact, bfloat16)
    rectified, signs = calls.convolve_activated_directly(x, packed, bias, residual, outputs, *place)
    assert torch.equal(rectified, y.relu())
    assert torch.equal(reference.unpack_signs(signs, outputs).permute(0, 3, 1, 2), y > 0)

    grad = images(*exact.shape)
    turned = direct_weights(w, None, True, bfloat16)
    passed = torch.randn(n, *size, channels) > 0
    mask = reference.pack_signs(passed)
    more = images(*x.shape) if added else None
    found = calls.fold(grad, turned, more, mask, channels, size, geometry)
    exact = torch.nn.grad.conv2d_input(x.shape, w.double(), grad.double(), *geometry[1:])
    exact = exact if more is None else exact + more
    near(found, torch.where(passed.permute(0, 3, 1, 2), exact, 0), bfloat16)


def w_taps(geometry: Geometry) -> int:
    return geometry[0][0] * geometry[0][1]


def near(found: Tensor, exact: Tensor, bfloat16: bool) -> None:
    assert found.shape == exact.shape
    size = max(1.0, float(exact.abs().max()))
    assert float((found - exact).abs().max()) <= (4e-2 if bfloat16 else 1e-5) * size


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride"), [(5, 7, 3, 2), (70, 20, 3, 2), (300, 16, 1, 3)]
)
def test_the_kernel_is_its_reference(
    channels: int, outputs: int, kernel: int, stride: int, gradient: bool, bfloat16: bool
) -> None:
    geometry = ((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1))
    w = torch.randn(outputs, channels, kernel, kernel) / (channels * kernel**2) ** 0.5
    small = (9 + 2 * (kernel // 2) - kernel) // stride + 1
    into, out = ((outputs, small), (channels, 9)) if gradient else ((channels, 9), (outputs, small))
    x = torch.randn(2, into[1], into[1], into[0])
    packed = direct_weights(w, torch.linspace(0.5, 2, outputs), gradient, bfloat16)
    pair = ops.fold_, reference_direct.fold_
    results = []
    for op in pair if gradient else (ops.direct_, reference_direct.direct_):
        y = torch.full((2, out[1], out[1], out[0]), torch.nan)
        if gradient:
            op(y, x, packed, None, None, 0.0, *geometry)
        else:
            op(y, None, x, packed, None, None, *geometry, 0, [])
        results.append(y)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("gradient", [False, True])
def test_packed_weights_unpack(gradient: bool, bfloat16: bool) -> None:
    w = torch.randn(20, 90, 3, 2).bfloat16().float()
    packed = direct_weights(w, None, gradient, bfloat16)
    assert torch.equal(reference_direct.unpack(packed, 20, 90, gradient, (3, 2)), w)


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize(("pixels", "outputs"), [(1, 500), (3, 129), (12, 333), (20, 64)])
def test_few_pixels_are_cut_by_outputs(pixels: int, outputs: int, bfloat16: bool) -> None:
    """Each output once, and its bits, whatever threads share a block's chunks."""
    x, w, bias = images(2, 90, pixels, 1), torch.randn(outputs, 90, 3, 1), torch.randn(outputs)
    residual, size = images(2, outputs, pixels, 1), (pixels, 1)
    geometry: Geometry = ((3, 1), (1, 1), (1, 0), (1, 1))
    packed, found = direct_weights(w, None, False, bfloat16), []
    for count in (1, 2, 3, 5):
        with threads(count):
            given = x, packed, bias, residual, outputs, size, geometry
            found.append(calls.convolve_activated_directly(*given))
    exact = F.conv2d(x.double(), w.double(), bias.double(), padding=(1, 0)) + residual
    error = float((found[0][0] - exact.relu()).norm() / exact.norm())
    assert error <= (2e-2 if bfloat16 else 1e-6)
    for y, signs in found[1:]:
        assert torch.equal(y, found[0][0])
        bits = [reference.unpack_signs(one, outputs) for one in (signs, found[0][1])]
        assert torch.equal(*bits)


def test_a_sample_has_the_same_bits_in_any_batch_and_with_any_threads() -> None:
    geometry = ((3, 3), (2, 2), (1, 1), (1, 1))
    x, grad, w = images(33, 96, 8, 8), images(33, 144, 4, 4), torch.randn(144, 96, 3, 3)
    packed, turned = (direct_weights(w, None, gradient, False) for gradient in (False, True))

    def run(part: slice) -> Tensor:
        y = calls.convolve_directly(x[part], packed, None, None, 144, (4, 4), geometry)
        back = calls.fold(grad[part], turned, None, None, 96, (8, 8), geometry)
        return torch.cat([y.flatten(1), back.flatten(1)], 1)

    whole, before = run(slice(None)), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(5, 8), slice(2, 33)):
                assert torch.equal(run(part), whole[part])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "geometry", [((5, 5), (1, 1), (2, 2), (1, 1)), ((7, 3), (2, 1), (3, 1), (1, 1))]
)
def test_a_gradient_of_one_large_image_is_cut_into_bands(geometry: Geometry) -> None:
    x, w = images(1, 3, 90, 30).double(), torch.randn(9, 3, *geometry[0]).double()
    grad = images(*F.conv2d(x, w, None, *geometry[1:]).shape)
    found = calls.fold(
        grad, direct_weights(w.float(), None, True, False), None, None, 3, (90, 30), geometry
    )
    near(found, torch.nn.grad.conv2d_input(x.shape, w, grad.double(), *geometry[1:]), False)


@pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(16)}, "`weights` must be contiguous"),
        ({"y": torch.zeros(1, 3, 3, 8)}, "must have the sizes of a convolution"),
        ({"stride": [0, 1]}, "must be positive"),
        ({"kernel": [9, 9]}, "must have the sizes|at most 64 taps"),
        (
            {"kept": torch.zeros(1, 2, 2, 1, dtype=torch.uint8), "activation": 2, "numbers": [0.1]},
            "`kept` must be",
        ),
        (
            {
                "kept": torch.zeros(1, 2, 2, 8, dtype=torch.uint8),
                "activation": 8,
                "numbers": [1.0] * 3,
            },
            "`kept` must be",
        ),
        ({"padding": [1]}, "must be two numbers each"),
    ],
)
def test_what_would_leave_the_memory_raises(change: dict[str, object], message: str) -> None:
    given_ = {
        "y": torch.zeros(1, 2, 2, 8), "kept": None, "x": torch.zeros(1, 4, 4, 5),
        "weights": direct_weights(torch.zeros(8, 5, 3, 3), None, False, False),
        "bias": None, "residual": None, "kernel": [3, 3], "stride": [2, 2],
        "padding": [1, 1], "dilation": [1, 1], "activation": 0, "numbers": [],
    }  # fmt: skip
    ops.direct_(*given_.values())
    with pytest.raises(RuntimeError, match=message):
        ops.direct_(*(given_ | change).values())


@pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(16)}, "`weights` must be contiguous"),
        ({"y": torch.zeros(1, 6, 6, 5)}, "must have the sizes of a convolution"),
        ({"slopes": torch.zeros(1, 4, 4, 1, dtype=torch.uint8)}, "`slopes` must be"),
        ({"slopes": torch.zeros(1, 4, 4, 4)}, "`slopes` must be"),
        ({"residual": torch.zeros(1, 4, 4, 1)}, "`residual` must be"),
    ],
)
def test_a_gradient_that_would_leave_the_memory_raises(
    change: dict[str, object], message: str
) -> None:
    given_ = {
        "y": torch.zeros(1, 4, 4, 5), "x": torch.zeros(1, 2, 2, 8),
        "weights": direct_weights(torch.zeros(8, 5, 3, 3), None, True, False),
        "residual": None, "slopes": None, "leak": 0.0, "kernel": [3, 3], "stride": [2, 2],
        "padding": [1, 1], "dilation": [1, 1],
    }  # fmt: skip
    ops.fold_(*given_.values())
    with pytest.raises(RuntimeError, match=message):
        ops.fold_(*(given_ | change).values())


def test_a_model_with_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = tables.Ranked("direct", "fold", "winograd")
    monkeypatch.setattr(speeds, "current", lambda: ranked)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 16, 1, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
    ).eval()  # fmt: skip
    x = images(3, 16, 13, 11).requires_grad_()
    fast = fa.compile(model)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    if fa.backend().is_native:
        assert str(fast.report()).count(" direct ") == str(fast.report()).count(" fold ") == 3


class Broadcast(nn.Module):
    """x + conv(x), where the convolution gives one channel, or one pixel."""

    def __init__(self, pixel: bool) -> None:
        super().__init__()
        self.pixel = pixel
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, stride=2) if pixel else nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return x + self.conv(F.adaptive_avg_pool2d(x, 3) if self.pixel else x)


@pytest.mark.parametrize("pixel", [False, True])
def test_a_sum_that_a_convolution_is_broadcast_into(pixel: bool) -> None:
    model, x = Broadcast(pixel).eval(), images(3, 16, 12, 12).requires_grad_()
    (found,) = torch.autograd.grad(fa.compile(model)(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
def test_numbers_whose_product_overflows_raise() -> None:
    k, x = 1 << 32, torch.rand(1, 1, 1, 16)
    pairs = [[k, k], [k, k], [k // 2, k // 2], [1, 1]]
    with pytest.raises(RuntimeError, match="at most 64 taps"):
        ops.direct_(x.clone(), None, x, torch.zeros(0), None, None, *pairs, 0, [])
