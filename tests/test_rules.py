"""Step rules against the papers' algorithms, written out in plain torch."""

from __future__ import annotations

import math

import published
import pytest
import torch
from conftest import seeded, smooth_net
from torch import Tensor, nn

import fastadv as fa

RADIUS = 0.2
BALLS = {"linf": fa.Linf, "l2": fa.L2}


def cross_entropy(model: nn.Module, y: Tensor) -> published.Loss:
    return lambda v: nn.functional.cross_entropy(model(v), y, reduction="none")


@pytest.mark.parametrize("order", BALLS)
def test_pgd_is_the_papers(order: str, vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, ball = smooth_net(), BALLS[order](RADIUS)
    generator = seeded(9)
    start = ball.sample(x, int(torch.randint(0, 2**63 - 1, (), generator=seeded(9))))
    got = fa.pgd(ball, step_size=0.05, steps=7)(model, x, y, generator=generator)
    expected = published.pgd(cross_entropy(model, y), x, start, RADIUS, 0.05, 7, order)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    assert not torch.allclose(got, start, atol=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("order", BALLS)
def test_mi_fgsm_is_the_papers(order: str, decay: float, vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    got = fa.mi_fgsm(BALLS[order](RADIUS), steps=8, decay=decay)(model, x, y)
    expected = published.mi_fgsm(cross_entropy(model, y), x, RADIUS, 8, decay, order)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("steps", [3, 10, 40, 100])
@pytest.mark.parametrize("order", BALLS)
def test_apgd_is_the_papers(order: str, steps: int, vectors: tuple[Tensor, Tensor]) -> None:
    """On an objective that counts nobody as fooled: x_max, the best iterate, is returned."""
    x, y = vectors
    net = smooth_net()
    frequency = 40 * torch.rand(6, dtype=torch.float64, generator=seeded(1))

    def rough(z: Tensor, y: Tensor) -> Tensor:  # many local maxima, so that steps are halved
        return z[:, 1]

    def model(v: Tensor) -> Tensor:
        wave = torch.sin((v * frequency).sum(1)) + net(v)[torch.arange(len(v)), y[: len(v)]]
        return torch.stack([torch.full_like(wave, 100.0), wave], 1)

    ball = BALLS[order](RADIUS)
    start = ball.sample(x, int(torch.randint(0, 2**63 - 1, (), generator=seeded(4))))
    attack = fa.apgd(ball, steps=steps, objective=rough)
    result = attack.run(model, x, torch.zeros_like(y), generator=seeded(4))
    assert not result.success.any()
    expected = published.apgd(lambda v: model(v)[:, 1], x, start, RADIUS, steps, order)
    torch.testing.assert_close(result.x_adv, expected, atol=1e-8, rtol=0)
    assert result.forwards == result.forwards_full == len(x) * (steps + 2)


def test_apgd_halves_its_steps_and_beats_its_start(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    ball, model = fa.Linf(RADIUS), smooth_net()
    worst = fa.apgd(ball, steps=30).run(model, x, y, generator=seeded(1)).loss
    fixed = fa.pgd(ball, 2 * RADIUS, 30).run(model, x, y, generator=seeded(1))
    kept = ~fixed.success
    assert bool((worst[kept] >= fixed.loss[kept] - 1e-12).all())


@pytest.mark.parametrize("steps", [1, 5])
def test_adam_is_torchs(steps: int, vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    attack = fa.Attack(fa.Linf(math.inf, None), fa.Adam(0.03), steps, start="zero")
    leaf = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.03, maximize=True)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, y)(leaf).sum().backward()
        optimizer.step()
    torch.testing.assert_close(attack(model, x, y), leaf.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", ["linf", "l2", "l1"])
def test_gradient_is_plain_ascent(order: str, vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    ball = {**BALLS, "l1": fa.L1}[order](math.inf, None)
    sizes = (0.5, 0.25)  # a schedule, whose last size is kept
    got = fa.Attack(ball, fa.Gradient(sizes), 3, start="zero")(model, x, y)
    v = x
    for size in (0.5, 0.25, 0.25):
        v = v + size * published.gradient(cross_entropy(model, y), v)[1]
    torch.testing.assert_close(got, v, atol=1e-10, rtol=0)


@pytest.mark.parametrize("rule", [fa.Momentum(0.05, 1.0), fa.Adam(0.05), fa.Steepest(0.05)])
def test_rules_take_gradients_of_any_size(
    rule: fa.rules.Rule, vectors: tuple[Tensor, Tensor]
) -> None:
    """Losses of 1e-41 have subnormal gradients in float32, whose inverse is infinite."""
    x = vectors[0].float()
    y = torch.zeros(len(x), dtype=torch.long)
    net = smooth_net(torch.float32)

    for scale in (1e-41, 1.0, 1e30):
        for ball in (fa.Linf(0.1), fa.L2(0.1), fa.L1(0.1)):
            attack = fa.Attack(
                ball, rule, 4, objective=lambda z, y, s=scale: z[:, 1] * s, start="zero"
            )
            got = attack(net, x, y)
            assert bool(torch.isfinite(got).all())
            if not isinstance(rule, fa.Adam):  # its epsilon, 1e-8, is a size that matters
                assert bool((got != x).any(1).all()), (scale, ball)


@pytest.mark.parametrize("order", ["linf", "l2", "l1"])
def test_momentum_in_float16_does_not_overflow(order: str) -> None:
    """A gradient in one of 70000 coordinates is 70000 times its mean; float16 ends at 65504."""
    ball = {**BALLS, "l1": fa.L1}[order](0.1)
    x = torch.full((2, 70000), 0.5, dtype=torch.float16)

    def model(v: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(v)), v[:, 7].float()], 1)

    y = torch.zeros(2, dtype=torch.long)
    got = fa.mi_fgsm(ball, steps=3)(model, x, y)
    assert bool((got[:, 7] > 0.55).all())
    assert torch.equal(got[:, 8:], x[:, 8:])
