"""A gradient's kernels in two calls: the bits of layer by layer, and nothing allocated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tables
import torch
from conftest import threads
from test_live import in_threads
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fastadv as fa
from fastadv.engine import Compiled, plan
from fastadv.engine.halves import Halves
from fastadv.engine.plan import Plan

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
our_kernels = tables.our_kernels
ATTACK = fa.bim(fa.Linf(0.1), 0.02, 5)


def gray() -> nn.Module:
    """Each kind of layer that LeNet has."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 24, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """Winograd, a stride, a batch norm before a ReLU, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.conv, self.down = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 40, 3, 2)
        self.head = nn.Linear(40 * 49, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.down(torch.relu(self.conv(x) + x))).flatten(1))


def data(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    size = (3, 16, 16) if isinstance(model, Residual) else (1, 16, 16)
    return torch.rand(n, *size), torch.arange(n) % 7


@contextmanager
def attacked(model: nn.Module, x: Tensor, rows: int = 1) -> Iterator[tuple[Compiled, Halves]]:
    """A compiled model in an attack that has taken some steps, and the halves that it goes by."""
    fast = fa.compile(model.eval())
    ATTACK(fast, x, torch.arange(len(x)) % 7)
    with fast.held(), torch.no_grad():
        for _ in range(3):
            assert fast.vjp(x, rows, probe=True) is not None
        yield fast, [c.halves for c in fast._compilers.values() if c.halves is not None][-1]


def same(found: tuple[Tensor, object], expected: tuple[Tensor, object], by: Tensor) -> None:
    assert torch.equal(found[0], expected[0])
    grad, exact = found[1](by), expected[1](by)  # type: ignore[operator]
    assert torch.equal(grad, exact)
    assert grad.stride() == exact.stride()


@pytest.mark.parametrize(
    ("make", "n", "rows"), [(gray, 1, 6), (gray, 17, 1), (Residual, 1, 1), (Residual, 4, 6)]
)
def test_the_bits_are_those_of_layer_by_layer(make: type[nn.Module], n: int, rows: int) -> None:
    model = make()
    x, _ = data(model, n)
    with attacked(model, x, rows) as (fast, halves):
        logits, _ = halves.by_layer(model, x)
        for given in (torch.rand_like(x), x.contiguous(memory_format=torch.channels_last)):
            by = torch.randn(n * rows, logits.shape[1])
            found = fast.vjp(given, rows)
            assert found is not None
            assert isinstance(found[1], plan.Loan)
            same(found, halves.by_layer(model, given), by)
            same(found, halves.by_layer(model, given), by + 1)  # a pullback is taken twice
    assert "kernels in two calls" in str(fast.report())


def test_forwards_live_side_by_side() -> None:
    model = gray()
    x, by = torch.rand(3, 4, 1, 16, 16), torch.randn(4, 10)
    with attacked(model, x[0]) as (fast, halves):
        found = [fast.vjp(one, 1) for one in x]
        for pair, one in reversed(list(zip(found, x, strict=True))):
            assert pair is not None
            same(pair, halves.by_layer(model, one), by)


def test_other_tangents_than_were_said() -> None:
    model = gray()
    x, _ = data(model, 3)
    with attacked(model, x, 2) as (fast, halves):
        for rows in (2, 5, 2, 1):
            found = fast.vjp(x, 2)
            assert found is not None
            same(found, halves.by_layer(model, x), torch.randn(3 * rows, 10))


def test_changed_weights_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    right = Plan.__init__

    def counted(self: Plan, halves: Halves, module: nn.Module, x: Tensor) -> None:
        noted.append(len(x))
        right(self, halves, module, x)

    monkeypatch.setattr(Plan, "__init__", counted)
    model = gray().eval()
    fast, (x, y) = fa.compile(model), data(model, 4)
    before = ATTACK(fast, x, y)
    for change in (lambda w: w.data.mul_(-1), lambda w: w.detach().numpy().fill(0.01)):
        for layer in (0, 3, 6, 8):
            change(model[layer].weight)
        model[3].bias = nn.Parameter(torch.randn(24))  # another tensor in its place
        after = ATTACK(fast, x, y)
        assert not torch.equal(after, before)
        with monkeypatch.context() as patch:
            patch.setattr(plan.Plans, "vjp", lambda *given: None)
            assert torch.equal(after, ATTACK(fast, x, y))
        before = after
    assert noted == [4]


def test_threads_have_plans_of_their_own() -> None:
    model = gray().eval()
    fast, (x, y) = fa.compile(model), data(model, 4)
    inputs = [x, 1 - x]
    expected = [ATTACK(fast, one, y) for one in inputs]

    def run(k: int) -> None:
        for _ in range(5):
            assert torch.equal(ATTACK(fast, inputs[k], y), expected[k])

    in_threads(lambda: run(0), lambda: run(1))


def test_on_two_threads_a_plan_has_the_same_bits() -> None:
    model = Residual()
    x, _ = data(model, 17)
    with threads(2), attacked(model, x) as (fast, halves):
        with threads(1):
            expected = halves.by_layer(model, x)
        found = fast.vjp(x, 1)
        assert found is not None
        same(found, expected, torch.randn(17, 7))


def test_a_step_allocates_what_it_hands_out_alone() -> None:
    model = gray()
    x, _ = data(model, 4)
    by = torch.randn(4, 10)
    with attacked(model, x) as (fast, halves):
        fast.vjp(x, 1)[1](by)  # type: ignore[index]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            logits, pull = fast.vjp(x, 1)  # type: ignore[misc]
            grad = pull(by)
        assert not any(halves.plans._free.values())  # it is lent
    taken = sum(e.self_cpu_memory_usage for e in seen.events() if e.self_cpu_memory_usage > 0)
    assert 0 < taken <= grad.nbytes + logits.nbytes + 128  # what an allocator rounds up


class Odd(nn.Module):
    """Layers that are none of the engine's."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.gain = gray(), nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x) * self.gain)


class Noisy(Odd):
    """And one that draws."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits + 0 * torch.rand_like(logits)


def test_atens_ops_come_between_kernels() -> None:
    model, x, by = Odd(), torch.rand(4, 1, 16, 16), torch.randn(8, 10)
    with attacked(model, x, 2) as (fast, halves):
        found = fast.vjp(1 - x, 2)
        assert isinstance(found[1], plan.Loan)  # type: ignore[index]
        same(found, halves.by_layer(model, 1 - x), by)  # type: ignore[arg-type]
        found = fast.vjp(1 - x, 2)
        same(found, halves.by_layer(model, 1 - x), by)  # type: ignore[arg-type]
    model.gain = nn.Parameter(torch.tensor(0.5))
    with fast.held(), torch.no_grad():
        found = fast.vjp(x, 2, probe=True)
        same(found, halves.by_layer(model, x), by)  # type: ignore[arg-type]
    assert "of ATen's between" in str(fast.report())


def test_what_no_plan_can_do_goes_layer_by_layer() -> None:
    x = torch.rand(4, 1, 16, 16)
    with attacked(Noisy(), x) as (fast, _):
        logits, pull = fast.vjp(x, 1)  # type: ignore[misc]
        assert not isinstance(pull, plan.Loan)
        torch.testing.assert_close(logits, fast.module(x), rtol=1e-4, atol=1e-5)
    assert "no plan, layer by layer: aten::rand_like" in str(fast.report())


class Many(Odd):
    """And so many that Python is no longer what costs."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        for _ in range(12):
            logits = torch.nn.functional.threshold(logits, 0.1, 0.0)
        return logits


def test_few_kernels_among_atens_ops_are_no_plan() -> None:
    x = torch.rand(4, 1, 16, 16)
    with attacked(Many(), x) as (fast, _):
        fast.vjp(x, 1)[1](torch.ones(4, 10))  # type: ignore[index]
        assert not isinstance(fast.vjp(x, 1)[1], plan.Loan)  # type: ignore[index]
    assert "24 ops of ATen's beside" in str(fast.report())


def test_large_buffers_have_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_MOST", 1 << 18)
    x = torch.rand(64, 1, 16, 16)
    with attacked(gray(), x) as (fast, halves):
        assert not isinstance(fast.vjp(x, 1)[1], plan.Loan)  # type: ignore[index]
        assert not any(halves.plans._free.values())
    assert "none, its buffers would take" in str(fast.report())


class Sees(TorchDispatchMode):
    """The names of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_each_kernel() -> None:
    x = torch.rand(4, 1, 16, 16)
    with attacked(gray(), x) as (fast, _), Sees() as seen:
        fast.vjp(x, 1)
    assert "fastadv::direct_" in seen.names
