"""Models that leave channels last on the way: what follows is served as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa

our_kernels = tables.our_kernels
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


def cut(x: Tensor) -> Tensor:
    """CSP's: channels cut off, and joined again."""
    a, b = x.chunk(2, 1)
    return torch.cat([a, F.relu(b) + a], 1)


def summed(x: Tensor) -> Tensor:
    """Split attention's: a sum over a dimension that was put in."""
    return x.view(len(x), 2, 16, *x.shape[2:]).sum(1).repeat(1, 2, 1, 1)


def flat(x: Tensor) -> Tensor:
    """A view that only contiguous images allow."""
    return x.contiguous().view(len(x), -1).view_as(x) * 1.5


def shuffled(x: Tensor) -> Tensor:
    """ShuffleNet's."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def rolled(x: Tensor) -> Tensor:
    return torch.roll(x.flip(1), (1, 2), (2, 3))


def turned(x: Tensor) -> Tensor:
    """Rows for columns: another image altogether."""
    return x.transpose(2, 3)


def strided(x: Tensor) -> Tensor:
    """Memory itself: nothing may be laid out anew."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride()) + x


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    mix.__name__: mix for mix in (cut, summed, flat, shuffled, rolled, turned, strided)
}


class Mixed(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor], features: bool) -> None:
        super().__init__()
        self.mix, self.features = mix, features
        self.stem, self.next = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm, self.deep = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.stem(x)))
        x = F.silu(self.norm(self.next(x)))
        x = F.relu(self.deep(self.mix(x)) + x)
        x = self.mix(x)
        return x if self.features else self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", MIXES)
def test_gradients_are_plain_torchs(name: str, features: bool) -> None:
    torch.manual_seed(0)
    model = Mixed(MIXES[name], features).eval()
    x = torch.randn(33, 3, 12, 12).requires_grad_()
    fast = fa.compile(model)
    y, exact = fast(x), model(x)
    by = torch.randn_like(exact)
    assert y.shape == exact.shape
    assert y.flatten(1).view(exact.shape).shape == exact.shape
    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
    (found,), (expected,) = (torch.autograd.grad(z, x, by) for z in (y, exact))
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@native
@pytest.mark.parametrize("name", [name for name in MIXES if name != "strided"])
def test_all_convolutions_are_served(name: str) -> None:
    fast, x = fa.compile(Mixed(MIXES[name], False).eval()), torch.rand(33, 3, 12, 12)
    fa.bim(fa.Linf(0.1), 0.02, 2)(fast, x, torch.arange(33) % 10)
    rows = [row for rows in fast.report().graphs.values() for row in rows]
    convolutions = [row for row in rows if row.op.startswith(("conv", "gradient 32"))]
    assert len(convolutions) >= 6
    assert not any(row.served_by == "ATen" for row in convolutions), str(fast.report())


@native
def test_an_attack_is_the_plain_models() -> None:
    model = Mixed(cut, False).eval()
    x, y = torch.rand(17, 3, 12, 12), torch.arange(17) % 10
    attack = fa.bim(fa.Linf(0.1), 0.02, 4)
    found, expected = attack(fa.compile(model), x, y), attack(model, x, y)
    assert float((found != expected).float().mean()) <= 0.02  # signs of gradients near zero


@native
def test_any_batch_in_three_compiles() -> None:
    """What is laid out anew says nothing of the batch."""
    model = Mixed(cut, False).eval()
    fast = fa.compile(model)
    for n in (4, 2, 15, 1, 33, 16, 70):
        x = torch.randn(n, 3, 12, 12).requires_grad_()
        (found,), (expected,) = (torch.autograd.grad(f(x).sum(), x) for f in (fast, model))
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    graphs = fast.report().graphs
    assert len(graphs) == 3
    assert all("1 graph(s)" in name for name in graphs)
