"""Training losses: Madry's and the universal one, by hand and on digits."""

from __future__ import annotations

import pytest
import torch
from conftest import image_net, seeded, smooth_net
from tolerance import assert_in_ball
from torch import Tensor, nn

import fastadv as fa


def test_madry_is_the_mean_loss_at_x_adv(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), fa.bim(fa.Linf(0.1), steps=3)
    loss = fa.training.Madry(attack)(model, x, y)
    expected = nn.functional.cross_entropy(model(attack(model, x, y)), y)
    torch.testing.assert_close(loss, expected)
    assert bool(loss > nn.functional.cross_entropy(model(x), y))
    loss.backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected.backward()
    for one, other in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_madry_takes_other_losses(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), fa.bim(fa.Linf(0.1), steps=2, objective=fa.margin)
    x_adv = attack(model, x, y)
    loss = fa.training.Madry(attack, loss=fa.margin)(model, x, y)
    torch.testing.assert_close(loss, fa.margin(model(x_adv), y).mean())
    default = fa.training.Madry(attack)(model, x, y)
    torch.testing.assert_close(default, fa.cross_entropy(model(x_adv), y).mean())
    clean = model(x).softmax(1).detach()
    away = fa.pgd(fa.Linf(0.1), steps=2, objective=fa.kl)
    torch.manual_seed(1)
    got = fa.training.Madry(away)(model, x, clean)
    torch.manual_seed(1)
    torch.testing.assert_close(got, fa.kl(model(away(model, x, clean)), clean).mean())
    labels = torch.nn.functional.one_hot(y, 3)
    binary = fa.bim(fa.Linf(0.1), steps=2, objective=fa.binary_cross_entropy)
    got = fa.training.Madry(binary)(model, x, labels)
    x_adv = binary(model, x, labels)
    torch.testing.assert_close(got, fa.binary_cross_entropy(model(x_adv), labels).mean())


def test_madry_crafts_in_its_mode_and_trains_in_the_models(images: tuple[Tensor, Tensor]) -> None:
    model, x, y = image_net().train(), *images
    flags, norm = [], model[1]
    norm.register_forward_hook(lambda m, *_: flags.append(m.training))
    batches = int(norm.num_batches_tracked)
    fa.training.Madry(fa.bim(fa.Linf(0.1), steps=3))(model, x, y).backward()
    assert flags == [False] * 3 + [True]
    assert int(norm.num_batches_tracked) == batches + 1  # the training forward's own


@pytest.mark.parametrize("universal", [False, True])
def test_a_compiled_model_crafts_and_the_model_itself_learns(
    images: tuple[Tensor, Tensor], universal: bool
) -> None:
    model, x, y = image_net().eval(), *images
    attack = fa.bim(fa.Linf(0.1), steps=3)
    gradients = []
    for given in (model, fa.compile(model)):
        robust = fa.training.Universal(attack) if universal else fa.training.Madry(attack)
        model.zero_grad()
        robust(given, x, y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_universal_shares_one_backward(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, reference = smooth_net(), smooth_net()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    attack = fa.Attack(fa.Linf(0.1), fa.Steepest(0.03), start="zero")
    loss = fa.training.Universal(attack)
    delta = torch.zeros(6, dtype=torch.float64)
    for _ in range(6):
        model.zero_grad()
        reference.zero_grad()
        value = loss(model, x, y)
        value.backward()
        leaf = (x + delta).clamp(0, 1).requires_grad_()
        expected = nn.functional.cross_entropy(reference(leaf), y)
        expected.backward()
        torch.testing.assert_close(value, expected)
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        delta = (delta + 0.03 * leaf.grad.sum(0).sign()).clamp(-0.1, 0.1)
        torch.testing.assert_close(loss.perturbation.delta, delta)
    assert float(delta.abs().max()) == pytest.approx(0.1)
    assert len(calls) == 6
    assert_in_ball(loss.perturbation.delta[None], torch.zeros(1, 6), 0.1, "linf")


def test_universal_takes_no_step_without_a_backward(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    loss = fa.training.Universal(fa.Attack(fa.L2(0.1), fa.Steepest(0.03), start="zero"))
    with pytest.raises(RuntimeError, match="before the first batch"):
        loss.perturbation  # noqa: B018
    value = loss(smooth_net(), x, y)
    assert not loss.perturbation.delta.any()
    copy = loss.perturbation
    value.backward()
    assert loss.perturbation.norm() == pytest.approx(0.03)
    assert not copy.delta.any()  # what was given is a copy


def test_universal_loss_cap(vectors: tuple[Tensor, Tensor]) -> None:
    """Capped samples give delta no gradient, and theta all of theirs."""
    x, y = vectors
    model = smooth_net()
    losses = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    cap = float(losses.median())
    attack = fa.Attack(fa.L2(9.0), fa.Steepest(0.03), start="zero")
    capped, free = fa.training.Universal(attack, loss_cap=cap), fa.training.Universal(attack)
    torch.testing.assert_close(capped(model, x, y), free(model, x, y))
    model.zero_grad()
    capped(model, x, y).backward()
    theta = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    free(model, x, y).backward()
    for one, other in zip(theta, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)
    leaf = x.clone().requires_grad_()
    grad = torch.autograd.grad(fa.cross_entropy(model(leaf), y).sum(), leaf)[0]
    for loss, keep in ((capped, losses <= cap), (free, losses < 99)):
        g = grad[keep].sum(0)
        torch.testing.assert_close(loss.perturbation.delta, 0.03 * g / g.norm())
    assert not torch.allclose(capped.perturbation.delta, free.perturbation.delta, atol=1e-3)


def test_universal_momentum_init_and_rules(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), fa.Attack(fa.Linf(0.2), fa.Momentum(0.03, 0.9), start="zero")
    start = fa.Perturbation(torch.full((6,), 0.1), fa.Linf(0.1))
    loss = fa.training.Universal(attack, init=start)
    loss(model, x, y).backward()
    moved = loss.perturbation.delta - 0.1
    torch.testing.assert_close(moved.abs(), torch.full((6,), 0.03).double(), atol=1e-7, rtol=0)
    for rule in (fa.Gradient(0.1), fa.Adam(0.1), fa.Auto()):
        with pytest.raises(ValueError, match="`attack` must have the rule Steepest or Momentum"):
            fa.training.Universal(fa.Attack(fa.Linf(0.1), rule))


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def trained(loss: object, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(64):
                value = loss(model, x[batch], y[batch])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
    return model


def test_digits_become_robust() -> None:
    x, y = digits()
    train, test = slice(0, 1300), slice(1300, None)
    clean = lambda model, x, y: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    ball = fa.Linf(0.15)
    judge = fa.pgd(ball, steps=20)

    def robust(model: nn.Module) -> float:
        x_adv = judge(model, x[test], y[test], generator=seeded(0))
        return fa.verify(model, x[test], x_adv, y[test], ball).robust_accuracy

    natural = trained(clean, x[train], y[train], 15)
    madry = trained(fa.training.Madry(fa.pgd(ball, steps=5)), x[train], y[train], 15)
    assert float((natural(x[test]).argmax(1) == y[test]).double().mean()) > 0.9
    assert robust(natural) < 0.3
    assert robust(madry) > robust(natural) + 0.25
