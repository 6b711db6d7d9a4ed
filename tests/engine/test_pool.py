"""Max pooling with a byte an output, and its gradient in one pass with the mask before it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import calls, reference, reference_pool

ops = torch.ops.fastadv
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")

axis = st.integers(1, 4).flatmap(
    lambda k: st.tuples(st.just(k), st.integers(1, 4), st.integers(0, k // 2), st.integers(0, 6))
)
poolings = st.tuples(axis, axis, st.integers(1, 3), st.integers(1, 40), st.booleans())


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(n, height, width, channels).permute(0, 3, 1, 2)


@given(poolings)
@settings(max_examples=60, deadline=None)
def test_pooling_and_its_gradient_are_atens(
    pooling: tuple[tuple[int, ...], tuple[int, ...], int, int, bool],
) -> None:
    rows, columns, n, channels, up = pooling
    kernel, stride, padding, more = zip(rows, columns, strict=True)
    size = [k + extra for k, extra in zip(kernel, more, strict=True)]
    x = images(n, channels, *size).round(decimals=1).requires_grad_()  # some are equal
    exact = F.max_pool2d(x, kernel, stride, padding, ceil_mode=up)
    pair = kernel, stride, padding
    y, taken = calls.max_pool(x.detach(), tuple(exact.shape[2:]), *pair)
    assert torch.equal(y, exact)
    grad, added = images(*exact.shape), images(*x.shape)
    (back,) = torch.autograd.grad(exact, x, grad)
    passed = torch.randn(n, *size, channels) > 0
    mask = reference.pack_signs(passed)
    found = calls.max_pool_gradient(grad, taken, added, mask, (size[0], size[1]), *pair)
    back = torch.where(passed.permute(0, 3, 1, 2), back + added, 0)
    torch.testing.assert_close(found, back, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_taken_as_aten_takes_it(bad: float) -> None:
    x = images(2, 5, 6, 6)
    x[0, :, 2, 3] = bad
    x[1] = bad
    x.requires_grad_()
    exact = F.max_pool2d(x, 3, 2, 1)
    y, taken = calls.max_pool(x.detach(), (3, 3), (3, 3), (2, 2), (1, 1))
    torch.testing.assert_close(y, exact, equal_nan=True, rtol=0, atol=0)
    grad = images(*exact.shape)
    (back,) = torch.autograd.grad(exact, x, grad)
    place = ((6, 6), (3, 3), (2, 2), (1, 1))
    torch.testing.assert_close(calls.max_pool_gradient(grad, taken, None, None, *place), back)


@pytest.mark.parametrize("channels", [3, 16, 37])
def test_the_kernel_is_its_reference(channels: int) -> None:
    x, grad = torch.randn(2, 9, 7, channels), torch.randn(2, 5, 4, channels)
    x[0, 2, 2] = torch.nan
    window = [3, 3], [2, 2], [1, 1]
    results = []
    for module in (ops, reference_pool):
        y = torch.empty(2, 5, 4, channels)
        taken = torch.zeros(2, 5, 4, reference_pool.room(channels), dtype=torch.uint8)
        module.max_pool_(y, taken, x, *window)
        back = torch.empty(2, 9, 7, channels)
        module.max_pool_gradient_(back, grad, taken, None, None, 0.0, *window)
        results.append((y, taken[..., :channels], back))
    torch.testing.assert_close(*results, equal_nan=True)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(1, 3, 2, 4)}, "a pixel under each window"),
        ({"taken": torch.zeros(1, 2, 2, 4, dtype=torch.uint8)}, "`taken` must be contiguous"),
        ({"kernel": [17, 17]}, "1 to 256 taps"),
        ({"padding": [2, 0]}, "less than the kernel"),
        ({"stride": [0, 1]}, "be positive"),
    ],
)
def test_what_would_leave_the_memory_raises(change: dict[str, object], message: str) -> None:
    given_ = {
        "y": torch.zeros(1, 2, 2, 4), "taken": torch.zeros(1, 2, 2, 16, dtype=torch.uint8),
        "x": torch.zeros(1, 4, 4, 4), "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0],
    }  # fmt: skip
    ops.max_pool_(*given_.values())
    with pytest.raises(RuntimeError, match=message):
        ops.max_pool_(*(given_ | change).values())


class Places(nn.Module):
    """A model that reads where the largest numbers were."""

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(x, 2, return_indices=True)
        return torch.cat([y, F.max_unpool2d(y, places, 2)[:, :, ::2, ::2]], 1)


@pytest.mark.parametrize("places", [False, True])
def test_models_that_pool(places: bool) -> None:
    pool: nn.Module = Places() if places else nn.MaxPool2d(3, 2, 1)
    last = nn.Conv2d(32 if places else 16, 5, 5)
    model = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), pool, last, nn.ReLU(), nn.Flatten())
    x = torch.rand(4, 1, 28, 28).requires_grad_()
    fast = fa.compile(model)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    if fa.backend().is_native:
        text = str(fast.report())
        assert ("its indices are read" in text) == places
        assert ("max pool + slopes" in text) == (not places)


class Stacked(nn.Module):
    """Poolings of poolings: YOLO's SPPF, an Inception branch, and one after the other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 16, 3, padding=1)
        self.branch, self.fc = nn.Conv2d(16, 16, 1), nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.kind == "sppf":
            maps = [x]
            for _ in range(3):
                maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
            x = torch.cat(maps, 1)
        elif self.kind == "inception":
            x = F.max_pool2d(x, 2)
            x = self.branch(x) + F.max_pool2d(x, 3, 1, 1)
        else:
            x = F.max_pool2d(F.max_pool2d(x, 2), 3, 2, 1)
        y: Tensor = self.fc(x.flatten(1))
        return y


@native
@pytest.mark.parametrize("kind", ["sppf", "inception", "in a row"])
def test_poolings_of_poolings(kind: str) -> None:
    model, x = Stacked(kind), torch.randn(33, 3, 8, 8).requires_grad_()
    exact = model(x)
    fast, by = fa.compile(model), torch.randn(33, 10)
    (expected,) = torch.autograd.grad(exact, x, by)
    (found,) = torch.autograd.grad(fast(x), x, by)
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())
