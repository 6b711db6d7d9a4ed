"""What lives at the same time: threads, kept graphs, an outer compile, random masks."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from test_compile import gradient
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastadv as fa
from fastadv.engine import Compiled


def compiled(model: nn.Module) -> Compiled:
    """By the compiler, however small the model is."""
    fast = fa.compile(model)
    fast._bypass = None
    return fast


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    more = [nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)]
    return nets.norm_statistics(nn.Sequential(*layers, *more), 3, 8, 8)


@pytest.fixture(scope="module")
def fast(base: nn.Module) -> Compiled:
    """For tests that leave the weights as they are."""
    return compiled(base)


X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def in_threads(*runs: Callable[[], None]) -> None:
    """Each in a thread of its own, at once; raises what one of them raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(runs))

    def guarded(run: Callable[[], None]) -> None:
        try:
            start.wait()
            run()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def repeats(model: nn.Module, x: Tensor, expected: Tensor, times: int = 12) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            assert torch.equal(gradient(model, x, Y)[1], expected)

    return run


def test_threads_on_one_compiled_model(fast: Compiled) -> None:
    inputs = X, X.flip(0), X * 0.5
    expected = [gradient(fast, x, Y)[1] for x in inputs]
    filters = list(warnings.filters)
    in_threads(*(repeats(fast, x, e) for x, e in zip(inputs, expected, strict=True)))
    assert warnings.filters == filters


def test_threads_on_two_compiled_models_and_their_first_compile(base: nn.Module) -> None:
    models = [copy.deepcopy(base) for _ in range(2)]
    models[1][3].weight.data.mul_(0.5)  # type: ignore[index,union-attr,operator]
    expected = [gradient(compiled(model), X, Y)[1] for model in models]
    filters = list(warnings.filters)
    in_threads(*(repeats(compiled(m), X, e) for m, e in zip(models, expected, strict=True)))
    assert warnings.filters == filters


def test_threads_on_two_compiles_of_one_model(base: nn.Module, fast: Compiled) -> None:
    """Both lend the model detached parameters: it must get back its own."""
    parameters = dict(base.named_parameters())
    expected = gradient(fast, X, Y)[1]
    both = nn.Sequential(base, nn.Identity())  # a different module that holds the same ones
    in_threads(*(repeats(m, X, expected, 40) for m in (fast, compiled(base), compiled(both))))
    after = dict(base.named_parameters())
    assert all(after[name] is parameters[name] for name in parameters)


def test_backward_twice_and_out_of_order(fast: Compiled) -> None:
    leaves = [x.clone().requires_grad_() for x in (X, X.flip(0), X)]
    losses = [F.cross_entropy(fast(leaf), Y) for leaf in leaves]
    for i in (2, 0, 1):
        losses[i].backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    assert torch.equal(once[0], once[2])
    for i in (1, 2, 0):
        losses[i].backward()
    for leaf, grad in zip(leaves, once, strict=True):
        assert torch.equal(leaf.grad, 2 * grad)
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the outer one's
def test_gradients_through_an_outer_compile(fast: Compiled) -> None:
    leaf = X.clone().requires_grad_()

    @torch.compile(backend="aot_eager")
    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(fast(x * 1.0), Y, reduction="sum") * 2

    for x in (leaf, X.flip(0).requires_grad_()):
        (grad,) = torch.autograd.grad(loss(x), x)
        torch.testing.assert_close(grad, 2 * gradient(fast, x.detach(), Y)[1])


class Dropped(nn.Module):
    """Gives the features that were left, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.drop, self.drop2d = nn.Dropout(0.4), nn.Dropout2d(0.3)
        self.fc = nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = self.drop(self.drop2d(torch.sigmoid(self.conv(x))))
        return self.fc(left.flatten(1)), left


def test_dropout_has_the_same_mask_in_forward_and_gradient() -> None:
    torch.manual_seed(0)
    model = Dropped().train()
    fast = compiled(model)
    seen = []
    for _ in range(2):
        leaf, exact = X.clone().requires_grad_(), X.clone().requires_grad_()
        logits, left = fast(leaf)
        seen.append(left.detach() != 0)
        kept = torch.sigmoid(model.conv(exact)) * seen[-1] / (0.6 * 0.7)
        torch.testing.assert_close(left, kept, rtol=1e-4, atol=1e-5)
        again = model.fc(kept.flatten(1))
        torch.testing.assert_close(logits, again, rtol=1e-4, atol=1e-5)
        grads = [torch.autograd.grad(F.cross_entropy(z, Y), at)[0]
                 for z, at in ((logits, leaf), (again, exact))]  # fmt: skip
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)
    assert not torch.equal(*seen)
    torch.manual_seed(3)
    first = fast(X.requires_grad_(False))[1]
    torch.manual_seed(3)
    assert torch.equal(fast(X)[1], first)
    assert abs(float((first != 0).float().mean()) - 0.42) < 0.1


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_parametrization_that_comes_changes_and_goes(base: nn.Module, name: str) -> None:
    model = copy.deepcopy(base)
    fast = compiled(model)
    conv = model[3]  # type: ignore[index]

    def same() -> Tensor:
        _, grad = gradient(fast, X, Y)
        torch.testing.assert_close(grad, gradient(model, X, Y)[1], rtol=1e-3, atol=1e-5)
        return grad

    grads = [same()]
    PARAMETRIZATIONS[name](conv)
    grads.append(same())
    with torch.no_grad():
        for parameter in conv.parametrizations.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    grads.append(same())
    parametrize.remove_parametrizations(conv, "weight")
    assert torch.allclose(same(), grads[-1], rtol=1e-3, atol=1e-5)
    assert not torch.equal(grads[1], grads[2])


@pytest.mark.parametrize("at", [0, 3, None])  # None: the model's own
def test_hooks_that_come_and_go_are_called(base: nn.Module, at: int | None) -> None:
    model = copy.deepcopy(base)
    fast = compiled(model)
    before, place = gradient(fast, X, Y)[1], model if at is None else model[at]  # type: ignore[index]
    attack = fa.bim(fa.Linf(0.1), 0.02, 4)
    attack(fast, X, Y)
    hook = place.register_forward_hook(lambda module, given, result: result * -3)
    found = gradient(fast, X, Y)[1]
    torch.testing.assert_close(found, gradient(model, X, Y)[1], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(found, before, rtol=1e-2)
    loss, expected = (attack.run(m, X, Y).loss for m in (fast, model))
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-4)
    hook.remove()
    torch.testing.assert_close(gradient(fast, X, Y)[1], before, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_takes_x_alone(fast: Compiled) -> None:
    with pytest.raises(TypeError, match="x alone"):
        fast(X, scale=2.0)


def foreach_adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1, foreach=True)


@pytest.mark.parametrize("kind", [foreach_adam, lambda p: torch.optim.AdamW(p, 0.1, fused=True)])
def test_training_is_followed_step_by_step(
    base: nn.Module, kind: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    model = copy.deepcopy(base)
    fast, optimizer = compiled(model), kind(list(model.parameters()))
    for _ in range(3):
        model.train()
        adversarial = X + 0.1 * gradient(fast, X, Y)[1].sign()
        F.cross_entropy(model(adversarial), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        _, grad = gradient(fast, X, Y)
        torch.testing.assert_close(grad, gradient(model, X, Y)[1], rtol=1e-3, atol=1e-4)
