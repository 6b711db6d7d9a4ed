"""Activations: their values and slopes, wherever a kernel computes them, and whole nets of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import isas
import pytest
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import calls, reference, reference_activations, spread
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_activations import NAMES, Activation
from fastadv.engine.reference_direct import Geometry, direct_weights
from fastadv.engine.reference_winograd import PLAIN, STRIDED, STRIDED_GRADIENT
from fastadv.engine.spread import spread_weights

ops = torch.ops.fastadv
PRECISIONS = [False, True] if multiplies_bfloat16() else [False]
our_kernels = tables.our_kernels
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


def of(name: str, *numbers: float) -> Activation:
    return (NAMES.index(name), *numbers)


def softplus(z: Tensor) -> Tensor:
    return F.softplus(z, 2.0, 3.0)


ALL: dict[str, tuple[Callable[[Tensor], Tensor], Activation]] = {
    "relu": (torch.relu, of("relu")),
    "leaky_relu": (F.leaky_relu, of("leaky_relu", 0.01)),
    "leaky_relu -2": (lambda z: F.leaky_relu(z, -2.0), of("leaky_relu", -2.0)),
    "relu6": (F.relu6, of("hardtanh", 0.0, 6.0)),
    "hardtanh": (lambda z: F.hardtanh(z, -0.5, 1.5), of("hardtanh", -0.5, 1.5)),
    "gelu": (F.gelu, of("gelu")),
    "gelu tanh": (lambda z: F.gelu(z, approximate="tanh"), of("gelu (tanh)")),
    "tanh": (torch.tanh, of("tanh")),
    "sigmoid": (torch.sigmoid, of("sigmoid")),
    "silu": (F.silu, of("silu")),
    "mish": (F.mish, of("mish")),
    "elu": (F.elu, of("elu", 1.0, 1.0, 1.0)),
    "selu": (F.selu, of("elu", 1.6732632423543772, 1.0507009873554805, 1.0)),
    "celu": (lambda z: F.celu(z, 0.5), of("elu", 0.5, 1.0, 2.0)),
    "softplus": (F.softplus, of("softplus", 1.0, 20.0)),
    "softplus 2": (softplus, of("softplus", 2.0, 3.0)),
    "hardsigmoid": (F.hardsigmoid, of("hardsigmoid")),
    "hardswish": (F.hardswish, of("hardswish")),
}
each = pytest.mark.parametrize("name", ALL)


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


class Net(nn.Module):
    """An activation after each kind of layer: convolutions by all kernels, a norm that stands
    before its convolution, a sum, a pooling, a mean and a linear layer."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.norm = run, nn.BatchNorm2d(32)
        self.stem, self.conv = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.down, self.fc = nn.Conv2d(32, 48, 5, stride=2), nn.Linear(48, 24)
        self.deep, self.last = nn.Conv2d(48, 48, 3, padding=1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        run = self.run
        x = run(self.stem(x))
        x = self.conv(run(self.norm(x))) + x
        x = run(F.max_pool2d(run(x), 2))
        x = run(F.avg_pool2d(x, 3, 1, 1) + x)
        x = run(self.deep(run(self.down(x))))
        y: Tensor = self.last(run(self.fc(x.mean((2, 3)))))
        return y


def trained(run: Callable[[Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    model = Net(run).train()
    for _ in range(3):
        model(torch.randn(8, 3, 14, 14))
    return model.eval()


@native
@each
def test_a_net_of_them(name: str) -> None:
    model = trained(ALL[name][0])
    fast = fa.compile(model)
    x = torch.randn(33, 3, 14, 14).requires_grad_()
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    leaf = x.detach().double().requires_grad_()
    exact = copy.deepcopy(model).double()(leaf).square().sum()
    (expected,) = torch.autograd.grad(exact, leaf)
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert float(error.median()) <= 5e-6
    said = str(fast.report())
    called = NAMES[int(ALL[name][1][0])]
    assert f"conv 32x3x3x3 + {called}" in said
    assert f"conv 32x32x3x3 + residual + {called}" in said
    assert f"batch norm + {called}" in said
    assert "ATen" not in said.replace("times ATen's", "")


IN_PLACE: dict[str, nn.Module] = {
    "relu": nn.ReLU(True), "leaky_relu": nn.LeakyReLU(0.2, True), "hardtanh": nn.ReLU6(True),
    "silu": nn.SiLU(True), "mish": nn.Mish(True), "elu": nn.ELU(0.7, True),
    "hardsigmoid": nn.Hardsigmoid(True), "hardswish": nn.Hardswish(True),
}  # fmt: skip


@native
@pytest.mark.parametrize("name", [*IN_PLACE, "selu", "celu"])
def test_those_that_write_on_their_input_are_fused_too(name: str) -> None:
    made = IN_PLACE.get(name) or (nn.SELU(True) if name == "selu" else nn.CELU(0.3, True))
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), made]
    layers += [nn.Conv2d(16, 16, 3, padding=1), made, nn.Flatten(), nn.Linear(16 * 144, 10)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(33, 3, 12, 12).requires_grad_()
    fast = fa.compile(model)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    called, said = "elu" if name in ("selu", "celu") else name, str(fast.report())
    assert f"norm folded + {called}" in said
    assert f"conv 16x16x3x3 + {called}" in said
    assert "gradient 16x16x3x3 + slopes" in said


def test_a_celu_of_a_negative_alpha_is_torchs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.CELU(-0.5)).eval()
    x = torch.randn(33, 3, 12, 12).requires_grad_()
    (found,) = torch.autograd.grad(fa.compile(model)(x).sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@native
@each
def test_an_attack_on_such_a_net_is_a_plan(name: str) -> None:
    model = trained(ALL[name][0])
    fast = fa.compile(model)
    x, y = torch.rand(4, 3, 14, 14), torch.arange(4)
    attack = fa.bim(fa.Linf(0.1), 0.02, 4)
    found = attack(fast, x, y)
    assert "had no plan" not in str(fast.report())
    expected = attack(model, x, y)
    assert float((found != expected).float().mean()) <= 0.02  # signs of gradients near zero


class Shared(nn.Module):
    """What an activation reads, read by others too; and one that learns its slope."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.learnt = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.silu(x) + x.sigmoid() + F.silu(x)
        x = self.again(self.learnt(x))
        return (F.elu(x, 0.5) * F.elu(x, 0.5)).mean((2, 3))


def test_what_others_read_too() -> None:
    model, x = Shared().eval(), torch.randn(33, 3, 12, 12).requires_grad_()
    (found,) = torch.autograd.grad(fa.compile(model)(x).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_an_infinite_gradient_where_the_slope_is_zero_is_none() -> None:
    z, grad = torch.full((1, 16, 1, 1), -100.0), torch.full((1, 16, 1, 1), torch.inf)
    for name in ("hardsigmoid", "hardswish", "relu", "relu6"):
        _, kept = calls.activate(z, None, ALL[name][1])
        assert kept is not None
        assert torch.equal(calls.times_slopes(grad, None, kept), torch.zeros_like(z))


def test_an_activation_without_a_gradient_keeps_nothing() -> None:
    model = trained(F.silu)
    with torch.no_grad():
        y = fa.compile(model)(x := torch.randn(33, 3, 14, 14))
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    assert math.isfinite(float(y.sum()))


@isas.others
def test_every_instruction_set(isa: str) -> None:
    isas.run_again(__file__, isa, "bits_of_a_pass or float64s or references")
