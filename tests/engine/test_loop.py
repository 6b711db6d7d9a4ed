"""An attack's steps as one noted step, again and again: the bits of step by step, in C++."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import tables
import torch
from conftest import threads
from nets import ResNet18, ViT
from test_live import in_threads
from test_plan import Noisy, Odd, Residual, Sees, data, gray
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Compiled, loop, noting
from fastadv.engine.loop import Loops
from fastadv.engine.noting import Repeated

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
our_kernels = tables.our_kernels
STEPS = 8
LINF, L2, L1 = fa.Linf(0.1), fa.L2(0.7), fa.L1(6.0)
NO_BOX = fa.Linf(0.1, bounds=None)
CHANNELS = fa.Linf(0.1, bounds=((0.0, 0.1, 0.2), (0.8, 0.9, 1.0)))


@contextmanager
def step_by_step() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loops, "plan", lambda *given: None)
        yield


def warm(model: nn.Module, x: Tensor, precision: str = "float32") -> Compiled:
    """A compiled model whose gradient at batches like x is noted."""
    fast = fa.compile(model.eval(), precision=precision)
    fa.bim(LINF, 0.02, 4)(fast, x, torch.arange(len(x)) % 7)
    return fast


def both(
    attack: fa.Attack, fast: Compiled, x: Tensor, y: Tensor | None = None, **given: object
) -> None:
    """The attack's result is that of step by step, and it ran in C++."""
    generator = torch.Generator()
    with step_by_step():
        expected = attack.run(fast, x, y, generator=generator.manual_seed(1), **given)  # type: ignore[arg-type]
    found = attack.run(fast, x, y, generator=generator.manual_seed(1), **given)  # type: ignore[arg-type]
    assert "call(s) of C++" in str(fast.report())
    for name in ("x_adv", "success", "loss"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.forwards, found.forwards_full) == (expected.forwards, expected.forwards_full)
    assert found.x_adv.stride() == expected.x_adv.stride()
    x_adv = attack(fast, x, y, generator=generator.manual_seed(1), **given)  # type: ignore[arg-type]
    assert torch.equal(x_adv, expected.x_adv)
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("make", [gray, Residual])
@pytest.mark.parametrize("n", [1, 5])
def test_the_bits_are_those_of_step_by_step(make: Callable[[], nn.Module], n: int) -> None:
    model = make()
    x, y = data(model, n)
    fast = warm(model, x)
    sizes = (0.03, 0.03, 0.02, 0.01)
    for ball in (LINF, L2, L1, NO_BOX, *([CHANNELS] if make is Residual else [])):
        near = x.clamp(0.2, 0.8) if ball is CHANNELS else x
        for rule in (fa.Steepest(0.03), fa.Steepest(sizes, top=0.2), fa.Gradient(5.0)):
            both(fa.Attack(ball, rule, STEPS), fast, near, y)
        both(fa.pgd(ball, 0.03, STEPS), fast, near.contiguous(memory_format=torch.channels_last), y)


@pytest.mark.parametrize("make", [gray, Residual])
def test_objectives_targets_radii_and_restarts(make: Callable[[], nn.Module]) -> None:
    model = make()
    x, y = data(model, 5)
    fast, target = warm(model, x), (y + 2) % 7
    classes = fast(x).shape[1]
    many, other = (torch.arange(5 * classes).view(5, -1) // k % 2 for k in (1, 3))
    soft = torch.randn(2, 5, classes).softmax(2)
    for objective in (fa.cross_entropy, fa.margin, fa.dlr):
        both(fa.pgd(LINF, 0.03, STEPS, objective=objective), fast, x, y)
        both(fa.pgd(LINF, 0.03, STEPS, objective=objective), fast, x, y, target=target)
    for objective, labels, to in (
        (fa.kl, soft[0], soft[1]), (fa.binary_cross_entropy, many, other)
    ):  # fmt: skip
        both(fa.pgd(L2, 0.2, STEPS, objective=objective), fast, x, labels)
        both(fa.pgd(L2, 0.2, STEPS, objective=objective), fast, x, labels, target=to)
    both(fa.pgd(LINF, 0.03, STEPS), fast, x)
    both(fa.pgd(L2, 0.2, STEPS, restarts=3), fast, x, y, radius=torch.linspace(0.1, 0.9, 5))
    both(fa.pgd(LINF, 0.02, STEPS, restarts=2), fast, x, y, radius=0.05, offset=3)


@pytest.mark.parametrize("make", [gray, Residual])
def test_bfloat16(make: Callable[[], nn.Module]) -> None:
    model = make()
    x, y = data(model, 5)
    fast = warm(model, x, "bfloat16")
    for ball in (LINF, L2, L1):
        both(fa.pgd(ball, 0.03, STEPS), fast, x, y)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [lambda: ResNet18(8), lambda: ResNet18(8, first=True), ViT])
def test_whole_nets(make: Callable[[], nn.Module], precision: str) -> None:
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    fast = warm(make(), x, precision)
    both(fa.pgd(LINF, 0.01, STEPS), fast, x, y)
    both(fa.pgd(L2, 0.1, STEPS), fast, x, y)


def test_on_two_threads_the_bits_are_the_same() -> None:
    model = Residual()
    x, y = data(model, 17)
    fast, attack = warm(model, x), fa.bim(LINF, 0.03, STEPS)
    expected = attack(fast, x, y)
    with threads(2):
        assert torch.equal(attack(fast, x, y), expected)


def test_attacks_run_side_by_side() -> None:
    model = gray()
    x, y = data(model, 4)
    fast = warm(model, x)
    inputs, attack = [x, 1 - x], fa.bim(LINF, 0.02, 50)
    with step_by_step():
        expected = [attack(fast, one, y) for one in inputs]

    def run(k: int) -> None:
        for _ in range(5):
            assert torch.equal(attack(fast, inputs[k], y), expected[k])

    in_threads(lambda: run(0), lambda: run(1))


def test_changed_weights_are_seen() -> None:
    model = gray()
    x, y = data(model, 4)
    fast = warm(model, x)
    for change in (lambda w: w.data.mul_(-1), lambda w: w.detach().numpy().fill(0.01)):
        for layer in (0, 3, 6, 8):
            change(model[layer].weight)
        model[3].bias = nn.Parameter(torch.randn(24))
        both(fa.pgd(LINF, 0.02, STEPS), fast, x, y)


@pytest.mark.parametrize("layer", [0, 8])  # whose bias is NaN in the last steps alone
def test_nan_in_the_loop_raises(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gray()
    x, y = data(model, 4)
    fast = warm(model, x)
    right = Repeated.run

    def poisoned(self: Repeated, times: int) -> None:
        model[layer].bias.data.fill_(torch.nan)
        right(self, times)

    monkeypatch.setattr(Repeated, "run", poisoned)
    with pytest.raises(ValueError, match="gave NaN"):
        fa.bim(LINF, 0.02, STEPS)(fast, x, y)
    assert "call(s) of C++" in str(fast.report())


def test_calls_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gray()
    x, y = data(model, 4)
    fast, taken = warm(model, x), []
    right = Repeated.run

    def seen(self: Repeated, times: int) -> None:
        taken.append(times)
        right(self, times)

    monkeypatch.setattr(Repeated, "run", seen)
    fa.bim(LINF, 0.02, 200)(fast, x, y)
    assert sum(taken) == 198  # one by autograd, which looks at the guards, and one noted
    assert len(taken) < 50
    taken.clear()
    monkeypatch.setattr(loop, "_SECONDS", 0.0)
    fa.bim(LINF, 0.02, 10)(fast, x, y)
    assert taken == [1] * 8


def test_atens_ops_come_between() -> None:
    model = Odd()
    x, y = torch.rand(4, 1, 16, 16), torch.arange(4)
    both(fa.pgd(LINF, 0.02, STEPS), warm(model, x), x, y)


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (fa.mi_fgsm(LINF, steps=4), "its rule is Momentum"),
        (fa.pgd(LINF, 0.02, 4, stop="fooled"), "it stops at 'fooled'"),
        (fa.pgd(LINF, 0.02, 4, objective=lambda z, y: z[:, 0]), "has no kernel"),
    ],
)
def test_why_an_attack_goes_step_by_step(attack: fa.Attack, why: str) -> None:
    model = gray()
    x, y = data(model, 4)
    fast = warm(model, x)
    attack(fast, x, y)
    assert why in str(fast.report())


def test_what_cannot_be_noted_is_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gray()
    x, y = data(model, 4)
    fast, attack = warm(model, x), fa.bim(LINF, 0.02, STEPS)
    expected = attack.run(fast, x, y)
    monkeypatch.setattr(noting, "_copy", lambda *given: False)
    found = attack.run(fast, x, y)
    assert torch.equal(found.x_adv, expected.x_adv)
    assert found.forwards == expected.forwards
    assert "step by step: aten::copy_ writes" in str(fast.report())


def test_no_plan_no_loop() -> None:
    x = torch.rand(4, 1, 16, 16)
    fast = warm(Noisy(), x)
    fa.bim(LINF, 0.02, STEPS)(fast, x, torch.arange(4))
    assert "step by step: its gradient had no plan" in str(fast.report())


def test_hooks_autocast_and_modes_leave_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gray()
    x, y = data(model, 4)
    fast, attack = warm(model, x), fa.bim(LINF, 0.02, STEPS)
    expected, runs = attack(fast, x, y), []
    monkeypatch.setattr(Repeated, "run", lambda *given: runs.append(given))
    hook = fast.register_forward_hook(lambda *given: None)
    assert torch.equal(attack(fast, x, y), expected)
    hook.remove()
    with Sees() as seen:
        assert torch.equal(attack(fast, x, y), expected)
    assert "fastadv::direct_" in seen.names
    with torch.autocast("cpu", torch.bfloat16):
        attack(fast, x, y)
    assert not runs


class Averaged(nn.Module):
    """ResNet-18's end and a part of its middle, at its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.down, self.short = nn.Conv2d(64, 128, 3, 2, 1), nn.Conv2d(64, 128, 1, 2)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.down(x) + self.short(x))
        return self.head(self.pool(x).flatten(1))


def test_a_step_asks_for_a_gradient_without_autograd_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Residual()
    x, y = data(model, 4)
    fast, asked = fa.compile(model), []
    monkeypatch.setattr(Compiled, "vjp", lambda *args, **given: asked.append(args))
    fa.bim(fa.Linf(0.1), 0.02, 5)(fast, x, y)
    assert len(asked) == 5
