"""Batch norm before a ReLU, in one pass with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import calls, reference
from fastadv.engine.reference_activations import RELU

ops = torch.ops.fastadv
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


def images(n: int, channels: int, side: int) -> Tensor:
    return torch.randn(n, side, side, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 16, 37])
@pytest.mark.parametrize("added", [False, True])
def test_one_pass_and_its_gradient(channels: int, added: bool) -> None:
    x, grad = images(3, channels, 5), images(3, channels, 5)
    scale, shift = torch.randn(channels), torch.randn(channels)
    leaf = x.clone().requires_grad_()
    exact = F.relu(leaf * scale[:, None, None] + shift[:, None, None])
    y, signs = calls.activate(x, None, RELU, scale, shift)
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-6)
    assert torch.equal(reference.unpack_signs(signs, channels).permute(0, 3, 1, 2), y > 0)
    residual = images(3, channels, 5) if added else None
    (expected,) = torch.autograd.grad(exact, leaf, grad)
    found = calls.times_slopes(grad, None, signs, 0.0, scale, residual)
    torch.testing.assert_close(found, expected + residual if added else expected)


@native
def test_what_would_leave_the_memory_raises() -> None:
    x, one = torch.zeros(1, 4, 4, 8), torch.ones(8)
    signs = torch.zeros(1, 4, 4, 2, dtype=torch.uint8)
    ops.activate_(x.clone(), signs, x, None, one, one, *RELU, [])
    with pytest.raises(RuntimeError, match="`scale` must be contiguous"):
        ops.activate_(x.clone(), signs, x, None, one[:3], one, *RELU, [])
    with pytest.raises(RuntimeError, match="`scale` must come with `shift`"):
        ops.activate_(x.clone(), signs, x, None, one, None, *RELU, [])
    with pytest.raises(RuntimeError, match="`other` must be"):
        ops.activate_(x.clone(), signs, x, x[..., :4].contiguous(), one, one, *RELU, [])
    short = signs[..., :1].contiguous()
    with pytest.raises(RuntimeError, match="`slopes` must be"):
        ops.activate_gradient_(x.clone(), x, short, 0.0, None, one, None)
    with pytest.raises(RuntimeError, match="`residual` must be"):
        ops.activate_gradient_(x.clone(), x, signs, 0.0, None, one, x[:, :2].contiguous())


class Net(nn.Module):
    """Two readers of x, one of them through norm and ReLU; `shared`: of the norm too."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.norm, self.conv = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x * 1.5)
        y = self.conv(F.relu(z)) + x
        return y + z if self.shared else y


@native
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_only_a_norm_that_the_relu_alone_reads(shared: bool, training: bool) -> None:
    model = Net(shared).train()
    model(images(8, 16, 6))
    model.train(training)
    x = images(4, 16, 6).requires_grad_()
    fast = fa.compile(model)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    kept = {k: v.clone() for k, v in model.named_buffers()}
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    model.load_state_dict(kept, strict=False)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert ("batch norm + relu" in str(fast.report())) == (not shared and not training)
