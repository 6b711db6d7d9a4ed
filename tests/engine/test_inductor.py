"""fa.compile as on CUDA, with the CPU in its place: gradients against plain torch; what is kept.

One test runs inductor itself, by its backend for the CPU; the others run the same graphs op by op.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import seeded
from stand_in import small_net, standing_in
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import inductor, loans
from fastadv.engine.copies import Copies

inner = inductor.inner
X, Y = torch.rand(6, 3, 8, 8, generator=seeded(0)), torch.arange(6) % 5


@pytest.fixture(autouse=True)
def _stand_in() -> Iterator[None]:
    with standing_in():
        yield


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
    return logits.detach(), grad


def assert_close(fast: nn.Module, model: nn.Module, x: Tensor = X, rtol: float = 1e-4) -> Tensor:
    ours, exact = gradient(fast, x, Y[: len(x)]), gradient(model, x, Y[: len(x)])
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))
        assert len(x) == 1 or a.stride() == b.stride()
    return ours[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # its own imports'
def test_inductor_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "inner", inner)
    model = small_net()
    fast = fa.compile(model)
    assert_close(fast, model)
    leaf = X.clone().requires_grad_()
    loss = fast(leaf).sum()
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward()  # no buffer of the graph was given away
    assert torch.equal(leaf.grad, 2 * once)
    with torch.no_grad():
        model.first.weight.mul_(1.5)
    assert_close(fast, model)
    assert "inductor" in str(fast.report())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_norm_costs_inductor_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import metrics

    def net(norm: bool) -> nn.Module:
        one = [nn.Conv2d(3, 16, 3, padding=1, bias=not norm), nn.BatchNorm2d(16), nn.ReLU()]
        two = [nn.Conv2d(16, 16, 3, padding=1, bias=not norm), nn.BatchNorm2d(16), nn.ReLU()]
        return nn.Sequential(*(m for m in one + two if norm or m not in (one[1], two[1]))).eval()

    monkeypatch.setattr(inductor, "inner", inner)
    kernels = []
    with torch._inductor.config.patch(fx_graph_cache=False):  # or nothing is generated
        for norm in (True, False):
            metrics.reset()
            leaf = X.clone().requires_grad_()
            torch.autograd.grad(fa.compile(net(norm))(leaf).sum(), leaf)
            kernels.append(metrics.generated_kernel_count)
    assert kernels == [4, 4]


@pytest.mark.parametrize("layout", ["plain", "last", "strided"])
def test_gradients_are_the_models(layout: str) -> None:
    model, x = small_net(), X
    if layout == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    fast = fa.compile(model)
    for n in (6, 5, 1, 3):  # the first size alone, then any
        assert_close(fast, model, x[:n])
    assert fast(x[:0]).shape == (0, 5)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_nothing_of_the_models_changes() -> None:
    model = small_net().train()
    model.second.weight.requires_grad_(False)
    before, identity = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    fast = fa.compile(model)
    gradient(fast, X, Y)
    fa.pgd(fa.Linf(0.1), steps=2)(fast, X, Y)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == identity
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert all(p.is_contiguous() for p in model.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        fast(X).sum().backward()


def test_no_gradient_of_a_weight_is_computed() -> None:
    """By the ops that run, forward and backward."""
    from no_sync import NoSync

    masks = []

    class Watch(NoSync):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.convolution_backward.default:
                masks.append(list(args[10]))
            return func(*args, **(kwargs or {}))

    model = small_net()
    fast = fa.compile(model)
    gradient(fast, X, Y)
    with Watch():
        gradient(fast, X, Y)
    assert masks == [[True, False, False]] * 2


def test_bfloat16_is_autocasts() -> None:
    model = small_net()
    fast = fa.compile(model, precision="bfloat16")
    for x in (X, X[:3]):
        with torch.autocast("cpu", torch.bfloat16):
            logits, grad = gradient(model, x, Y[: len(x)])
        ours = gradient(fast, x, Y[: len(x)])
        assert ours[0].dtype == ours[1].dtype == torch.float32
        torch.testing.assert_close(ours[0], logits.float(), rtol=0.02, atol=0.02)
        assert float((ours[1] - grad).norm() / grad.norm()) < 0.05
    assert "inductor, bfloat16" in str(fast.report())
    assert not torch.equal(fast(X), model(X))


def test_bfloat16_serves_any_model() -> None:
    """On the CPU it is refused where no kernel of ours has such products."""
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 5))
    fast = fa.compile(model, precision="bfloat16")
    torch.testing.assert_close(fast(X), model(X), rtol=0.05, atol=0.05)
    fa.pgd(fa.Linf(0.1), steps=2)(fast, X, Y)


def test_copies_are_of_what_is_read_otherwise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 5))
    copies = Copies(model, bfloat16=False)
    copies.refresh()
    lent = [copies.lend(p) for p in model.parameters()]
    own = [t.data_ptr() != p.data_ptr() for t, p in zip(lent, model.parameters(), strict=True)]
    assert own == [True, *[False] * 5]  # the 3x3 kernels, contiguous as they were made
    assert lent[0].is_contiguous(memory_format=torch.channels_last)
    assert copies.bytes == 4 * 3 * 9 * 4
    assert not any(t.requires_grad for t in lent)

    half = Copies(model, bfloat16=True)
    half.refresh()
    assert {half.lend(p).dtype for p in model.parameters()} == {torch.bfloat16}
    places = half.pointers
    with torch.no_grad():
        model[0].weight.add_(1)
    half.refresh()
    assert half.pointers == places  # in their place
    assert torch.equal(half.lend(model[0].weight), model[0].weight.bfloat16())
    model[3] = nn.Linear(144, 7)
    half.refresh()
    assert half.lend(model[3].weight).shape == (7, 144)


def test_weights_are_copied_once_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    refresh = Copies.refresh
    monkeypatch.setattr(Copies, "refresh", lambda self: (calls.append(1), refresh(self)))
    fast = fa.compile(small_net(), graph=False)
    fa.pgd(fa.Linf(0.1), steps=4, restarts=2)(fast, X, Y)
    assert len(calls) == 1
    gradient(fast, X, Y)
    gradient(fast, X, Y)
    assert len(calls) == 3  # outside of an attack at each forward


def test_copies_are_written_after_the_replays_that_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those may be under way on another stream."""
    fast = fa.compile(small_net(), graph=True)
    attack = fa.pgd(fa.Linf(0.1), steps=2)
    attack(fast, X, Y)
    (graphs,) = fast._replays._graphs.values()
    entered, refresh = [], Copies.refresh

    def watched(copies: Copies) -> None:
        entered.append(graphs.entered)
        refresh(copies)

    monkeypatch.setattr(Copies, "refresh", watched)
    before = graphs.entered
    attack(fast, X, Y)
    assert entered == [before + 1]


def test_two_precisions_at_once_raise() -> None:
    model = small_net()
    copies = Copies(model, bfloat16=True)
    copies.refresh()
    parameters = dict(model.named_parameters())

    def inside(x: torch.Tensor) -> torch.dtype:
        return loans.lent(model, copies.lend, lambda _: model.out.weight.dtype, x)

    with pytest.raises(RuntimeError, match="in two precisions"):
        loans.lent(model, None, inside, X)
    assert loans.lent(model, copies.lend, inside, X) == torch.bfloat16
    assert all(parameters[n] is p for n, p in model.named_parameters())


def test_threads_on_one_model() -> None:
    fast, raised = fa.compile(small_net()), []
    attack = fa.pgd(fa.Linf(0.1), steps=4)
    inputs = [X, X.flip(0), X * 0.5]
    expected = [attack(fast, x, Y, generator=seeded(1)) for x in inputs]

    def run(x: Tensor, e: Tensor) -> None:
        try:
            for _ in range(4):
                assert torch.equal(attack(fast, x, Y, generator=seeded(1)), e)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=a) for a in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised


def test_without_triton_it_runs_as_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "inductor needs Triton, which is not installed"
    monkeypatch.setattr(inductor, "why_plain", lambda: why)
    model = small_net()
    fast = fa.compile(model)
    assert torch.equal(gradient(fast, X, Y)[1], gradient(model, X, Y)[1])
    assert f"runs as plain torch: {why}" in str(fast.report())
    attack = fa.pgd(fa.Linf(0.1), steps=3)
    ours = attack(fast, X, Y, generator=seeded(1))
    assert torch.equal(ours, attack(model, X, Y, generator=seeded(1)))
    assert "replayed a captured step" in str(fast.report())
