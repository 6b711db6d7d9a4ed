"""3x3 convolutions of 1x1 and 2x2 images as one product: against float64, alone and in nets."""

from __future__ import annotations

import copy

import pytest
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import spread
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference import pack_signs, unpack_signs
from fastadv.engine.spread import spread_bias, spread_weights, spreads

PRECISIONS = ["float32", "bfloat16"] if multiplies_bfloat16() else ["float32"]
our_kernels = tables.our_kernels


def images(n: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *size, channels, generator=generator).permute(0, 3, 1, 2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("channels", [(16, 16), (48, 32), (256, 320)])
def test_a_convolution_and_its_gradient_are_float64s(
    size: tuple[int, int], channels: tuple[int, int], precision: str
) -> None:
    (inputs, outputs), half, pixels = channels, precision == "bfloat16", size[0] * size[1]
    tolerance = 5e-3 if half else 1e-6
    x, grad, n = images(3, inputs, size), images(3, outputs, size, 1), 3
    w, scale = torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5, torch.rand(outputs) + 0.5
    bias, residual = torch.randn(outputs), images(n, outputs, size, 2)
    exact_w = (w * scale[:, None, None, None]).double()

    packed = spread_weights(w, scale, False, half, size)
    shift = spread_bias(bias, pixels)
    y = spread.convolve(x, packed, shift, residual, outputs, size)
    exact = F.conv2d(x.double(), exact_w, bias.double(), padding=1) + residual
    assert float((y - exact).norm()) <= tolerance * float(exact.norm())
    rectified, signs = spread.convolve_activated(x, packed, shift, residual, outputs, size)
    assert torch.equal(rectified, y.relu())
    assert torch.equal(unpack_signs(signs, outputs).permute(0, 3, 1, 2), y > 0)
    assert y.shape == exact.shape

    packed = spread_weights(w, scale, True, half, size)
    passed, before = images(n, inputs, size, 3) > 0, images(n, inputs, size, 4)
    mask = pack_signs(passed.permute(0, 2, 3, 1))
    found = spread.gradient(grad, packed, before, mask, inputs, size)
    exact = torch.nn.grad.conv2d_input(x.shape, exact_w, grad.double(), padding=1) + before
    exact = torch.where(passed, exact, 0.0)
    assert float((found - exact).norm()) <= tolerance * float(exact.norm())


def test_what_is_no_such_product() -> None:
    same = (3, 3), (1, 1), (1, 1), (1, 1)
    assert spreads(same, (2, 2), 16, 32)
    assert not spreads(same, (2, 3), 16, 32)
    assert not spreads(same, (2, 2), 16, 24)  # no whole panels
    assert not spreads(((3, 3), (2, 2), (1, 1), (1, 1)), (2, 2), 16, 32)
    assert not spreads(((3, 3), (1, 1), (0, 0), (1, 1)), (2, 2), 16, 32)
    assert not spreads(((5, 5), (1, 1), (1, 1), (1, 1)), (2, 2), 16, 32)


class Small(nn.Module):
    """Norms folded, a residual, a bias without a norm, and a pooling to one pixel, on 2x2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 48, 3, padding=1)
        self.head = nn.Linear(48, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(x)))
        y = F.relu(self.second(y) + y)
        y = F.max_pool2d(y, 2)
        return self.head(torch.tanh(self.third(y)).flatten(1))


def small() -> tuple[Small, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Small().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model, torch.randn(6, 16, 2, 2), torch.arange(6)


@pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_net(precision: str) -> None:
    model, x, y = small()
    fast, exact = fa.compile(model, precision=precision), copy.deepcopy(model).double()
    for _ in range(2):
        leaf, double = x.clone().requires_grad_(), x.double().requires_grad_()
        (found,) = torch.autograd.grad(F.cross_entropy(fast(leaf), y), leaf)
        (expected,) = torch.autograd.grad(F.cross_entropy(exact(double), y), double)
        tolerance = 5e-2 if precision == "bfloat16" else 1e-5
        assert float((found - expected).norm()) <= tolerance * float(expected.norm())
        with torch.no_grad():  # packed anew
            for one in (model, exact):
                one.second.weight.mul_(0.5)
                one.third.bias.add_(1)
    rows = [row for rows in fast.report().graphs.values() for row in rows]
    said = [row for row in rows if "all pixels in one product" in row.why]
    assert len(said) == 6  # forward and gradient of each
    assert all(row.served_by.startswith(("direct", "fold")) for row in said)


@pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
def test_an_attacks_steps_in_cpp_and_a_sample_in_any_batch() -> None:
    model, x, y = small()
    fast = fa.compile(model)
    attack = fa.bim(fa.Linf(0.1, bounds=None), 0.02, 6)
    found = [attack(fast, x, y) for _ in range(3)][-1]
    assert "call(s) of C++" in str(fast.report())
    alone = [attack(fast, x[2:4], y[2:4]) for _ in range(3)][-1]
    assert torch.equal(alone, found[2:4])
    assert float((found - attack(model, x, y)).abs().max()) <= 0.04 + 1e-6  # but for signs near 0


@pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
def test_a_net_learns() -> None:
    model, x, y = small()
    fast, exact = fa.compile(model.train()), copy.deepcopy(model).double()
    for forward, images in ((fast.learn, x), (exact, x.double())):
        F.cross_entropy(forward(images), y).backward()
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert float((p.grad - q.grad).norm()) <= 1e-4 * float(q.grad.norm()) + 1e-7
