"""The mean over an image's pixels, its gradient, and the flattening after it; the watch for NaN."""

from __future__ import annotations

from collections.abc import Callable

import isas
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import reference, reference_pool

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
ops = torch.ops.fastadv


@pytest.mark.parametrize("channels", [1, 16, 37, 512])
@pytest.mark.parametrize("pixels", [1, 12, 300])
def test_the_kernel_is_its_reference(channels: int, pixels: int) -> None:
    x, row = torch.randn(3, pixels, channels), torch.randn(3, channels)
    x[1, 0, channels - 1] = torch.nan
    for gradient, given, like in ((False, x, row), (True, row, x)):
        y, expected = torch.empty_like(like), torch.empty_like(like)
        ops.mean_(y, given, gradient)
        reference_pool.mean_(expected, given, gradient)
        torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_many_pixels_are_not_summed_in_one_row() -> None:
    x = torch.rand(2, 50176, 20)
    y = torch.empty(2, 20)
    ops.mean_(y, x, False)
    torch.testing.assert_close(y.double(), x.double().mean(1), rtol=2e-6, atol=0)


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("value", [0.0, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("size", [1, 7, 300, 70001])
def test_the_watch_is_its_reference(size: int, value: float, infinite: bool) -> None:
    for at in (0, size // 2, size - 1):
        x, met = torch.randn(size), torch.zeros(1, dtype=torch.bool)
        x[at] = value
        ops.watch_(met, x, infinite)
        expected = torch.zeros_like(met)
        reference.watch_(expected, x, infinite)
        assert torch.equal(met, expected)
        ops.watch_(met, torch.zeros(3), infinite)
        assert torch.equal(met, expected)


@isas.others
def test_every_instruction_set(isa: str) -> None:
    isas.run_again(__file__, isa, "its_reference")


def test_what_does_not_fit_raises() -> None:
    x, row = torch.randn(3, 12, 8), torch.randn(3, 8)
    for y, given, gradient in (
        (row[:2], x, False), (x, row[:, :4], True), (row, x.transpose(1, 2), False),
        (row.double(), x, False), (x[0], row, True),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="must be"):
            ops.mean_(y.clone(), given, gradient)
    met = torch.zeros(1, dtype=torch.bool)
    for one, t in ((met, row.double()), (met, x.transpose(1, 2)), (met.long(), row)):
        with pytest.raises(RuntimeError, match="must be"):
            ops.watch_(one, t, True)


def test_an_op_check() -> None:
    x, row = torch.randn(3, 12, 8), torch.randn(3, 8)
    torch.library.opcheck(ops.mean_.default, (row, x, False))
    torch.library.opcheck(ops.watch_.default, (torch.zeros(1, dtype=torch.bool), x, True))


def kept(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def dropped(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def scaled(x: Tensor) -> Tensor:
    """As squeeze and excitation has it, where the mean is no end."""
    return (x * torch.sigmoid(x.mean((2, 3), keepdim=True))).mean([-1, -2])


class Net(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 32, 3, padding=1), pool, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.conv(x))))


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("pool", [kept, dropped, scaled])
def test_models_have_it(pool: Callable[[Tensor], Tensor], n: int) -> None:
    model = Net(pool).eval()
    fast = fa.compile(model)
    x, by = torch.rand(n, 3, 12, 10), torch.randn(n, 5)
    results = []
    for net in (model, fast):
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        results.append((y.detach(), torch.autograd.grad(y, leaf, by)[0]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert "mean over pixels" in str(fast.report())


@pytest.mark.parametrize("pool", [kept, dropped])
def test_a_plan_has_all_of_it(pool: Callable[[Tensor], Tensor]) -> None:
    fast = fa.compile(Net(pool).eval())
    x = torch.rand(4, 3, 12, 10)
    for _ in range(2):
        fa.bim(fa.Linf(0.1), 0.02, 4)(fast, x, torch.arange(4))
    assert "kernels in two calls" in str(fast.report())
    assert "of ATen's" not in str(fast.report())
