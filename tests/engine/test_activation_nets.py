"""Whole nets of activations: what is fused, what ATen keeps, and attacks on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import tables
import torch
import torch.nn.functional as F
from activation_cases import ALL, each
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine.reference_activations import NAMES

our_kernels = tables.our_kernels
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


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


def test_an_activation_without_a_gradient_keeps_nothing() -> None:
    model = trained(F.silu)
    with torch.no_grad():
        y = fa.compile(model)(x := torch.randn(33, 3, 14, 14))
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    assert math.isfinite(float(y.sum()))
