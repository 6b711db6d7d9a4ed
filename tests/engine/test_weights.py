"""Weights are seen as they are at each forward, and autograd's promises hold."""

from __future__ import annotations

import copy
from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from test_compile import gradient
from torch import Tensor, nn

import fastadv as fa


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    more = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)]
    return nets.norm_statistics(nn.Sequential(*layers, *more), 3, 8, 8)


@pytest.fixture
def model(base: nn.Module) -> nn.Module:
    return copy.deepcopy(base)


X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def conv(model: nn.Module) -> nn.Conv2d:
    layer = model[3]  # type: ignore[index]
    assert isinstance(layer, nn.Conv2d)
    return layer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    optimizer.zero_grad()


def through_numpy(model: nn.Module) -> None:
    conv(model).weight.detach().numpy()[1, 2] += 1.0


def one_bit(model: nn.Module) -> None:
    conv(model).weight.detach().numpy()[0, 0, 0, 0] *= -1.0


def through_data(model: nn.Module) -> None:
    conv(model).weight.data.mul_(1.5)


def new_data(model: nn.Module) -> None:
    conv(model).weight.data = conv(model).weight.data * 0.5


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        conv(model).weight.add_(0.1)


def load(model: nn.Module) -> None:
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items() if v.dim()}, False)


def assign(model: nn.Module) -> None:
    state = {k: v * 0.5 if v.dim() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def statistics(model: nn.Module) -> None:
    model[1].running_var.numpy()[:] *= 3  # type: ignore[index,union-attr,operator]


def sgd(model: nn.Module) -> None:
    step(model, torch.optim.SGD(model.parameters(), lr=0.5))


def fused_sgd(model: nn.Module) -> None:
    step(model, torch.optim.SGD(model.parameters(), lr=0.5, fused=True))


def fused_adam(model: nn.Module) -> None:
    step(model, torch.optim.Adam(model.parameters(), lr=0.1, fused=True))


def other_layer(model: nn.Module) -> None:
    model[3] = nn.Conv2d(8, 8, 3, padding=1)  # type: ignore[operator]


CHANGES = [
    through_numpy, one_bit, through_data, new_data, in_place, load, assign, statistics, sgd,
    fused_sgd, fused_adam, other_layer,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen_by_the_next_forward(
    model: nn.Module, change: Callable[[nn.Module], None]
) -> None:
    fast = fa.compile(model)
    logits, grad = gradient(fast, X, Y)
    change(model)
    new_logits, new_grad = gradient(fast, X, Y)
    assert not torch.equal(new_logits, logits)
    assert not torch.equal(new_grad, grad)
    exact_logits, exact = gradient(model, X, Y)
    torch.testing.assert_close(new_logits, exact_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_grad, exact, rtol=1e-3, atol=1e-4)


def test_two_live_forwards_and_a_kept_graph(model: nn.Module) -> None:
    fast = fa.compile(model)
    a, b = (t.clone().requires_grad_() for t in (X, X.flip(0)))
    first, second = fast(a), fast(b)
    (grad_b,) = torch.autograd.grad(second.square().sum(), b)
    (grad_a,) = torch.autograd.grad(first.square().sum(), a, retain_graph=True)
    torch.testing.assert_close(grad_a, grad_b.flip(0), rtol=0, atol=0)
    for _ in range(3):
        fast(torch.rand_like(X).requires_grad_()).sum().backward()
    (again,) = torch.autograd.grad(first.square().sum(), a)
    assert torch.equal(again, grad_a)


def test_a_graph_has_the_weights_of_its_forward(model: nn.Module) -> None:
    fast = fa.compile(model)
    _, exact = gradient(fast, X, Y)
    leaf = X.clone().requires_grad_()
    loss = F.cross_entropy(fast(leaf), Y, reduction="sum")
    through_numpy(model)
    gradient(fast, X, Y)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(grad, exact)


def test_parameters_get_no_gradient(model: nn.Module) -> None:
    fast = fa.compile(model)
    leaf = X.clone().requires_grad_()
    fast(leaf).sum().backward()
    assert leaf.grad is not None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_without_an_input_gradient_backward_raises(model: nn.Module) -> None:
    fast = fa.compile(model)
    with pytest.raises(RuntimeError, match=r"fast\.module"):
        F.cross_entropy(fast(X), Y).backward()
    with torch.no_grad():
        assert not fast(X).requires_grad
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not fast(X).requires_grad


def test_double_backward_raises(model: nn.Module) -> None:
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(fa.compile(model)(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


def test_attacks_of_fastadv_and_of_others(model: nn.Module) -> None:
    fast = fa.compile(model)
    attack = fa.pgd(fa.Linf(8 / 255), step_size=2 / 255, steps=5)
    found = attack(fast, X, Y, generator=torch.Generator().manual_seed(0))
    exact = attack(model, X, Y, generator=torch.Generator().manual_seed(0))
    assert float((found - exact).abs().gt(1e-5).float().mean()) < 0.02
    torchattacks = pytest.importorskip("torchattacks")
    for kind in (torchattacks.PGD, torchattacks.PGDL2):
        theirs = [kind(m, eps=0.1, alpha=0.02, steps=5, random_start=False)(X, Y)
                  for m in (fast, model)]  # fmt: skip
        assert float((theirs[0] - theirs[1]).abs().gt(1e-3).float().mean()) < 0.02


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the outer one's
def test_under_an_outer_compile(model: nn.Module) -> None:
    fast = fa.compile(model)

    @torch.compile(backend="eager")
    def twice(x: Tensor) -> Tensor:
        return 2 * fast(x * 1.0)

    torch.testing.assert_close(twice(X), 2 * model(X), rtol=1e-4, atol=1e-5)


def test_copies_compile_anew(model: nn.Module) -> None:
    fast = fa.compile(model)
    logits = fast(X).detach()
    other = copy.deepcopy(fast)
    through_data(model)
    torch.testing.assert_close(other(X).detach(), logits)
    assert fa.compile(fast) is fast
