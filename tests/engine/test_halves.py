"""Inside an attack a compiled model's gradient is called as it was captured: the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Compiled
from fastadv.engine.halves import Halves
from fastadv.engine.loop import Step

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
ATTACK = fa.bim(fa.Linf(0.1), 0.02, 5)


def gray() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 36, 10)
    )


def colour() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    more = [nn.Conv2d(32, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 10)]
    return nn.Sequential(*layers, *more)


class Counts(nn.Module):
    """It counts its forwards, and another one is another function."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.forwards = colour(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.net(x) * self.forwards


class Two(nn.Module):
    """Its graph breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = colour()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * 2 if float(x.detach().sum()) > 0 else x)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each gradient by the halves was of, called from Python or in a loop."""
    calls: list[int] = []
    right, repeat = Halves.vjp, Step.repeat

    def vjp(self: Halves, module: nn.Module, x: Tensor, rows: int = 1) -> object:
        calls.append(len(x))
        return right(self, module, x, rows)

    def repeated(self: Step, size: float, times: int) -> None:
        calls.extend([len(self.x)] * times)
        repeat(self, size, times)

    monkeypatch.setattr(Halves, "vjp", vjp)
    monkeypatch.setattr(Step, "repeat", repeated)
    return calls


def data(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    size = (1, 16, 16) if model[0].in_channels == 1 else (3, 16, 16)  # type: ignore[index,union-attr]
    return torch.rand(n, *size), torch.arange(n) % 10


@pytest.mark.parametrize("make", [gray, colour])
@pytest.mark.parametrize("n", [1, 4, 17])
def test_the_bits_are_autograds(
    make: object, n: int, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make().eval()  # type: ignore[operator]
    fast, (x, y) = fa.compile(model), data(model, n)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        used.clear()
        found = ATTACK(fast, given, y)
        assert used == [n] * 4  # the first step asks Dynamo
        with monkeypatch.context() as patch:
            patch.setattr(Compiled, "vjp", lambda *given, **options: None)
            expected = ATTACK(fast, given, y)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_changed_weights_are_seen(used: list[int]) -> None:
    model = colour().eval()
    fast, (x, y) = fa.compile(model), data(model, 4)
    before = ATTACK(fast, x, y)
    for change in (lambda w: w.data.mul_(-1), lambda w: w.detach().numpy().fill(0.01)):
        change(model[0].weight)
        after = ATTACK(fast, x, y)
        assert not torch.equal(after, before)
        assert torch.equal(after, ATTACK(fa.compile(model), x, y))
        before = after
    model[6].weight = nn.Parameter(-model[6].weight.detach())  # another tensor in its place
    assert torch.equal(ATTACK(fast, x, y), ATTACK(fa.compile(model), x, y))
    assert len(used) > 20


@torch.compiler.disable
def temper(logits: Tensor) -> Tensor:
    return logits * torch.tanh(logits.sum(1, keepdim=True))


class Tail(nn.Module):
    """What follows its graph runs in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.net = colour()

    def forward(self, x: Tensor) -> Tensor:
        return temper(self.net(x))


class Head(Tail):
    """And here what comes before it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(temper(x))


class Unregistered(nn.Module):
    """A layer of it stands in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.extra = colour(), [nn.Linear(10, 10)]

    def forward(self, x: Tensor) -> Tensor:
        return self.extra[0](self.net(x))

    def load_state_dict(self, state: dict, *rest: object, **options: object) -> object:
        with torch.no_grad():
            self.extra[0].weight.copy_(torch.eye(10))
        return super().load_state_dict(state, *rest, **options)


@pytest.mark.parametrize("make", [Counts, Two, Tail, Head, Unregistered])
def test_what_is_no_function_of_x_alone_goes_by_autograd(
    make: type[nn.Module], used: list[int]
) -> None:
    models, results = [make().eval() for _ in "ab"], []
    for model in models:
        model.load_state_dict(models[0].state_dict())
    if isinstance(models[0], Unregistered):
        models[1].extra = models[0].extra
    x, y = torch.rand(3, 3, 16, 16), torch.arange(3)
    for model in (fa.compile(models[0]), models[1]):
        results.append(ATTACK.run(model, x, y).loss)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    assert not used
    if isinstance(models[0], Counts):
        assert models[0].forwards == models[1].forwards == 6


def test_hooks_on_the_compiled_model_run_in_every_step(used: list[int]) -> None:
    model = colour().eval()
    fast, (x, y) = fa.compile(model), data(model, 3)
    seen: list[int] = []
    fast.register_forward_hook(lambda module, given, logits: seen.append(1) or -logits)
    found, expected = ATTACK(fast, x, y), ATTACK(lambda x: -model(x), x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.041)  # a sign that turns near 0
    assert len(seen) == 5
    assert not used


def test_samples_that_depend_on_each_other() -> None:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32, track_running_stats=False)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(32 * 256, 10)).eval()
    x, _ = data(model, 1)
    search = fa.deepfool("l2", steps=6)
    found, expected = search.run(fa.compile(model), x), search.run(model, x)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-3, atol=1e-5)


def test_under_autocast_every_step_is_the_models(used: list[int]) -> None:
    model = colour().eval()
    fast, (x, y) = fa.compile(model), data(model, 3)
    with torch.autocast("cpu", torch.bfloat16):
        ATTACK(fast, x, y)
    assert not used


class Writes(nn.Module):
    """It writes on a view of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h.view(len(h), -1)[:, ::2] = 0
        return self.fc(h.flatten(1))


def test_writes_on_views_are_not_lost() -> None:
    model, x = Writes().eval(), torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(fa.compile(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_norms_in_train_mode(used: list[int]) -> None:
    model = colour()
    x, y = data(model, 6)
    statistics = model[1].running_mean.clone()
    attack = fa.bim(fa.Linf(0.1), 0.02, 3, mode="train")
    found, expected = attack.run(fa.compile(model), x, y), attack.run(model, x, y)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=1e-4)
    assert torch.equal(model[1].running_mean, statistics)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("make", [gray, colour])
def test_deepfool_takes_all_classes_in_one_backward(make: object, n: int, used: list[int]) -> None:
    model = make().eval()  # type: ignore[operator]
    x, _ = data(model, n)
    search = fa.deepfool("l2", steps=6)
    found, expected = search.run(fa.compile(model), x), search.run(model, x)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.steps, expected.steps)
    assert sum(used) >= found.forwards - n


def test_moosavi_on_a_compiled_model(used: list[int]) -> None:
    model = gray().eval()
    x, _ = data(model, 40)
    uaps = [
        fa.universal.moosavi(fa.Linf(0.2), m, [x], passes=1) for m in (fa.compile(model), model)
    ]
    assert used
    rates = [fa.universal.measure(uap, model, [x]).fooled for uap in uaps]
    assert abs(rates[0] - rates[1]) <= 0.05


def test_outside_of_an_attack_there_are_none() -> None:
    model = colour().eval()
    fast, (x, _) = fa.compile(model), data(model, 2)
    fast(x.requires_grad_())
    assert fast.vjp(x.detach()) is None
    with fast.held():
        assert fast.vjp(x.detach()) is None
        assert fast.vjp(x.detach(), probe=True) is not None
        assert fast.vjp(x) is None
