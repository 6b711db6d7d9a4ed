"""Dense stacks under autograd: logits and input gradients, on the kernels that attacks run on."""

from __future__ import annotations

import copy
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import seeded, threads
from test_dense import MODULES, SIZES, arrays, net, precisions
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Compiled, dense_plan, reference_dense

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")

X = torch.rand(70, 20, generator=seeded(1))


@pytest.fixture(autouse=True)
def _nothing_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_plan, "_TINY", 0)


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (grad,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), grad


def compiled(bfloat16: bool = False) -> Compiled:
    precision = "bfloat16" if bfloat16 else "float32"
    return fa.compile(net((20, 40, 19, 10), nn.ReLU()), precision=precision)


@pytest.mark.parametrize("bfloat16", precisions())
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_the_op_is_its_definition(activation: int, sizes: tuple[int, ...], bfloat16: bool) -> None:
    stack = arrays(net(sizes, MODULES[activation]), activation, bfloat16)
    x, grad = torch.rand(61, sizes[0]), torch.rand(61, sizes[-1])
    results: list[list[Tensor]] = []
    for op in (torch.ops.fastadv.dense_pass_, reference_dense.dense_pass_):
        logits, back = torch.empty(61, sizes[-1]), torch.empty(61, sizes[0])
        slopes = torch.zeros(61, sum(len(bias) for bias in stack[2]))
        op(logits, slopes, x, *stack, False)
        op(back, slopes, grad, *stack, True)
        results.append([logits, back])
    for mine, its in zip(*results, strict=True):
        allowed = 2e-2 if bfloat16 else 2e-6  # a rounding to bfloat16 may fall to either side
        assert float((mine - its).abs().max()) <= allowed * float(its.abs().max())


@pytest.mark.parametrize("activation", range(len(MODULES)))
def test_logits_and_gradients_are_float64s(activation: int) -> None:
    model = net((20, 40, 19, 10), MODULES[activation])
    model.insert(0, nn.Flatten())
    x = X.view(70, 5, 2, 2).contiguous(memory_format=torch.channels_last)
    found = gradient(fa.compile(model), x)
    exact = gradient(copy.deepcopy(model).double(), x.double())
    for mine, its in zip(found, exact, strict=True):
        assert mine.shape == its.shape
        assert float((mine - its).norm() / its.norm()) <= 1e-6
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bfloat16", precisions())
def test_a_sample_does_not_depend_on_its_batch(bfloat16: bool) -> None:
    fast = compiled(bfloat16)
    whole = gradient(fast, X)
    with threads(3):
        for part in (slice(0, 70), slice(0, 1), slice(3, 61)):
            for mine, all_of_them in zip(gradient(fast, X[part]), whole, strict=True):
                assert torch.equal(mine, all_of_them[part])


def test_two_live_forwards_a_kept_graph_and_changed_weights() -> None:
    fast = compiled()
    _, expected = gradient(fast, X)
    leaf, other = X.clone().requires_grad_(), (X * 0.5).requires_grad_()
    first = fast(leaf).square().sum()
    fast(other).sum().backward()
    fast.module[0].weight.data.zero_()  # type: ignore[index, union-attr]
    for _ in range(2):
        (grad,) = torch.autograd.grad(first, leaf, retain_graph=True)
        assert torch.equal(grad, expected)  # of the weights that the forward saw
    assert not torch.equal(gradient(fast, X)[0], gradient(compiled(), X)[0])


def test_what_has_no_gradient_raises() -> None:
    fast = compiled()
    with pytest.raises(RuntimeError, match=r"fast\.module"):
        fast(X).sum().backward()
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(fast(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with torch.no_grad():
        assert not fast(leaf).requires_grad
    with torch.inference_mode():
        assert float((fast(X) - fast.module(X)).abs().max()) <= 1e-5


def test_threads_side_by_side() -> None:
    fast = compiled()
    expected = gradient(fast, X)
    found: list[Any] = []
    workers = [Thread(target=lambda: found.append(gradient(fast, X))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, expected, strict=True))


def test_other_data_is_plain_torchs() -> None:
    fast = compiled()
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(X).dtype == torch.bfloat16
    fast.double()
    assert torch.equal(fast(X.double()), fast.module(X.double()))
    assert fast(X[:0].double()).shape == (0, 10)


def test_small_ones_stay_plain_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_plan, "_TINY", 1 << 26)
    fast = compiled()
    assert torch.equal(gradient(fast, X)[1], gradient(fast.module, X)[1])
