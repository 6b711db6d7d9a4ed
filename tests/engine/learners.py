"""What tests of fast.learn share: a net without kinks, and its gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Compiled, learning_choice
from fastadv.engine.learning_choice import Kernels
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, PLAIN, WINOGRAD

OURS = Kernels(WINOGRAD, WINOGRAD, WINOGRAD)
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


@pytest.fixture(params=[OURS, Kernels(DIRECT, FOLD, ATEN), Kernels(PLAIN, PLAIN, PLAIN)], ids=str)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """What serves every convolution, whatever the table says."""
    monkeypatch.setattr(learning_choice, "kernels_of", lambda *_: request.param)
    return request.param  # type: ignore[no-any-return]


def smooth_net(inplace: bool = False) -> nn.Sequential:
    """Without kinks, so that a gradient is as near as its numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(9, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Softplus(),
        nn.Conv2d(16, 24, 3, padding=1), nn.ELU(inplace=inplace), nn.Conv2d(24, 8, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(8 * 7 * 5, 5),
    )  # fmt: skip


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 9, 9, 7, generator=generator)
    return x, torch.randint(5, (n,), generator=generator)


def warm(model: nn.Module, x: Tensor) -> Compiled:
    """A compiled model that has learned once: then its images are channels last."""
    state = copy.deepcopy(model.state_dict())
    fast = fa.compile(model)
    fast.learn(x)
    model.load_state_dict(state)
    return fast


def gradients(
    forward: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, y: Tensor
) -> list[Tensor]:
    """The loss, its gradients by x and by the weights, and the buffers after it."""
    x = x.detach().clone().requires_grad_()
    loss = F.cross_entropy(forward(x), y)
    model.zero_grad()
    loss.backward()
    found = [loss.detach(), x.grad, *(p.grad for p in model.parameters())]
    return [t.clone() for t in (*found, *model.buffers()) if t is not None]


def close(got: list[Tensor], exact: list[Tensor], tolerance: float = 2e-5) -> None:
    assert len(got) == len(exact)
    for one, other in zip(got, exact, strict=True):
        error = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-9)
        assert float(error) <= tolerance
