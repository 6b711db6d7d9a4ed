"""Convolutions of each channel by itself: against float64, their reference, and in whole nets."""

from __future__ import annotations

import copy

import isas
import pytest
import tables
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import calls, reference, reference_direct
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_activations import NAMES
from fastadv.engine.reference_direct import Geometry, depthwise_weights

ops = torch.ops.fastadv
our_kernels = tables.our_kernels
PRECISIONS = ["float32", "bfloat16"] if multiplies_bfloat16() else ["float32"]
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
# Kernel, stride, padding, dilation and the pixels beyond the least, along an axis.
axis = st.tuples(
    st.integers(1, 7), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.integers(0, 20)
)


def images(n: int, channels: int, *size: int) -> Tensor:
    return torch.randn(n, *size, channels).permute(0, 3, 1, 2)


def geometry_and_size(*axes: tuple[int, int, int, int, int]) -> tuple[Geometry, tuple[int, int]]:
    kernel, stride, padding, dilation, more = zip(*axes, strict=True)
    size = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + more[i] for i in range(2)]
    return (kernel, stride, padding, dilation), (size[0], size[1])


def near(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape
    assert float((found - exact).abs().max()) <= 5e-6 * max(1.0, float(exact.abs().max()))


@given(axis, axis, st.integers(1, 3), st.integers(1, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_convolution_and_its_gradient_are_float64s(
    down: tuple[int, int, int, int, int], across: tuple[int, int, int, int, int], n: int,
    channels: int, added: bool,
) -> None:  # fmt: skip
    geometry, size = geometry_and_size(down, across)
    x, w = images(n, channels, *size), torch.randn(channels, 1, *geometry[0])
    exact = F.conv2d(x.double(), w.double(), None, *geometry[1:], channels)
    bias = torch.randn(channels) if added else None
    residual = images(*exact.shape) if added else None
    grad, packed = images(*exact.shape), depthwise_weights(w, None)
    back = torch.nn.grad.conv2d_input(
        x.shape, w.double(), grad.double(), *geometry[1:], groups=channels
    )
    exact = exact + bias[:, None, None] + residual if bias is not None else exact
    call = (x, packed, bias, residual, channels, tuple(exact.shape[2:]), geometry)
    y = calls.convolve_directly(*call)
    near(y, exact)
    rectified, signs = calls.convolve_activated_directly(*call)
    assert torch.equal(rectified, y.relu())
    assert signs is not None
    assert torch.equal(reference.unpack_signs(signs, channels).permute(0, 3, 1, 2), y > 0)

    passed = torch.randn(n, *size, channels) > 0
    more = images(*x.shape) if added else None
    mask = reference.pack_signs(passed)
    found = calls.fold(grad, packed, more, mask, channels, size, geometry)
    back = back if more is None else back + more
    near(found, torch.where(passed.permute(0, 3, 1, 2), back, 0))


@native
@pytest.mark.parametrize("channels", [3, 16, 37])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernels_are_their_references(channels: int, stride: int) -> None:
    pairs = ([3, 5], [stride, stride], [1, 2], [1, 1])
    w, scale = torch.randn(channels, 1, 3, 5), torch.rand(channels) + 0.5
    packed = depthwise_weights(w, scale)
    assert torch.equal(packed, depthwise_weights(w * scale[:, None, None, None], None))
    size = (9, 11) if stride == 1 else (5, 6)
    x, grad = torch.randn(2, 9, 11, channels), torch.randn(2, *size, channels)
    bias, slopes, results = torch.randn(channels), torch.randn(2, 9, 11, channels), []
    silu = NAMES.index("silu")
    for run in (ops, reference_direct):
        y, kept, back = torch.empty_like(grad), torch.empty_like(grad), torch.empty_like(x)
        run.depthwise_(y, kept, x, packed, bias, grad, *pairs, silu, [])
        run.depthwise_gradient_(back, grad, packed, x, slopes, 0.0, *pairs)
        results.append((y, kept, back))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_a_sample_has_the_same_bits_in_any_batch_and_with_any_threads() -> None:
    geometry: Geometry = ((3, 3), (2, 2), (1, 1), (1, 1))
    x, grad = images(33, 50, 13, 13), images(33, 50, 7, 7)
    packed = depthwise_weights(torch.randn(50, 1, 3, 3), None)

    def run(part: slice) -> Tensor:
        y = calls.convolve_directly(x[part], packed, None, None, 50, (7, 7), geometry)
        back = calls.fold(grad[part], packed, None, None, 50, (13, 13), geometry)
        return torch.cat([y.flatten(1), back.flatten(1)], 1)

    whole, before = run(slice(None)), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(5, 8), slice(2, 33)):
                assert torch.equal(run(part), whole[part])
    finally:
        torch.set_num_threads(before)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(9, 4)}, "`weights` must be contiguous"),
        ({"weights": torch.zeros(9, 5).bfloat16()}, "`weights` must be"),
        ({"y": torch.zeros(1, 2, 2, 8)}, "must have the same channels"),
        ({"y": torch.zeros(1, 3, 3, 5)}, "must have the sizes of a convolution"),
        ({"stride": [5, 5], "y": torch.zeros(1, 1, 1, 5)}, "`stride` be at most 4"),
        ({"kernel": [33, 1], "padding": [16, 0], "y": torch.zeros(1, 2, 2, 5)}, "at most 32 taps"),
        ({"bias": torch.zeros(4)}, "`bias` must be"),
        ({"kept": torch.zeros(1, 2, 2, 1, dtype=torch.uint8), "activation": 1}, "`kept` must be"),
    ],
)
def test_what_would_leave_the_memory_raises(change: dict[str, object], message: str) -> None:
    given_ = {
        "y": torch.zeros(1, 2, 2, 5), "kept": None, "x": torch.zeros(1, 4, 4, 5),
        "weights": torch.zeros(9, 5), "bias": None, "residual": None, "kernel": [3, 3],
        "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "activation": 0, "numbers": [],
    }  # fmt: skip
    ops.depthwise_(*given_.values())
    with pytest.raises(RuntimeError, match=message):
        ops.depthwise_(*(given_ | change).values())
    back = {
        "y": given_["x"], "x": given_["y"], "weights": given_["weights"], "residual": None,
        "slopes": torch.zeros(1, 4, 4, 1, dtype=torch.uint8), "leak": 0.0,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="`slopes` must be"):
        ops.depthwise_gradient_(*back.values(), [3, 3], [2, 2], [1, 1], [1, 1])


class Inverted(nn.Module):
    """1801.04381's blocks, one with a stride, one with a residual; and a channel multiplier of 2,
    which no kernel of ours serves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.deep = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.next = nn.BatchNorm2d(32)
        self.wide = nn.Conv2d(32, 32, 5, 2, 2, groups=32)
        self.twice = nn.Conv2d(32, 64, 3, padding=1, groups=32)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = F.hardswish(self.next(self.deep(x)) + x)
        x = F.silu(self.wide(x))
        y: Tensor = self.fc(F.relu(self.twice(x)).mean((2, 3)))
        return y


def trained() -> Inverted:
    torch.manual_seed(0)
    model = Inverted().train()
    for _ in range(3):
        model(torch.randn(8, 3, 14, 14))
    return model.eval()


@native
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_net_of_them(precision: str) -> None:
    model = trained()
    fast = fa.compile(model, precision=precision)  # type: ignore[arg-type]
    x = torch.randn(33, 3, 14, 14).requires_grad_()
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    leaf = x.detach().double().requires_grad_()
    exact = copy.deepcopy(model).double()(leaf).square().sum()
    (expected,) = torch.autograd.grad(exact, leaf)
    error = float((found - expected).norm() / expected.norm())
    assert error <= (5e-2 if precision == "bfloat16" else 2e-6)
    (rows,) = fast.report().graphs.values()
    served = {(row.layer, row.op.split()[0]): row for row in rows}
    assert served["deep", "conv"].served_by == served["deep", "gradient"].served_by == "depthwise"
    assert served["deep", "conv"].op.endswith("norm folded + residual + hardswish")
    assert served["wide", "conv"].op.endswith("+ silu")
    assert served["wide", "gradient"].op.endswith("+ slopes")
    assert served["twice", "conv"].why == "has 32 groups"


@native
def test_weights_that_change_are_seen() -> None:
    model = trained()
    fast, x = fa.compile(model), torch.randn(33, 3, 14, 14)
    with torch.no_grad():
        fast(x)
        model.deep.weight.data.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        model.next.running_var.data.mul_(4)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@isas.others
def test_every_instruction_set(isa: str) -> None:
    isas.run_again(__file__, isa, "float64s or references")
