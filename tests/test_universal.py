"""fa.universal.gradient: one delta that raises the mean loss."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import LinearPair, seeded, smooth_net
from tolerance import assert_in_ball
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastadv as fa

W = torch.tensor([0.5, -2.0, 0.0, 1.0, -0.25, 0.0], dtype=torch.float64)
Y = torch.zeros(12, dtype=torch.long)


def ascent(ball: fa.Ball, rule: fa.rules.Rule, **more: object) -> fa.Attack:
    return fa.Attack(ball, rule, start="zero", **more)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_optimum_of_a_linear_model(norm: str, vectors: tuple[Tensor, Tensor]) -> None:
    ball = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}[norm](0.3)
    best = {
        "linf": 0.3 * W.sign(),
        "l2": 0.3 * W / W.norm(),
        "l1": torch.tensor([0, -0.3, 0, 0, 0, 0], dtype=torch.float64),
    }[norm]
    rules = [fa.Steepest(0.1, top=0.1), fa.Momentum(0.1, top=0.1)]
    if norm == "linf":
        rules += [fa.Adam(0.1), fa.Gradient(0.5)]
    for rule in rules:
        start = fa.Attack(ball, rule)
        uap = fa.universal.gradient(
            start, LinearPair(W), [(vectors[0], Y)], 40, generator=seeded(1)
        )
        moved = W.abs() > 0 if norm == "linf" else slice(None)
        torch.testing.assert_close(uap.delta[moved], best[moved], atol=1e-5, rtol=0)
        assert_in_ball(uap.delta[None], torch.zeros_like(uap.delta)[None], 0.3, norm)
        assert uap.ball == ball


def gradients(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(loss (N,), its gradient (N, d)) at clamp(x + delta)."""
    leaf = (x + delta).clamp(0, 1).requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), y, reduction="none")
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("cap", [None, 1.1])
@pytest.mark.parametrize("signs", [False, True])
def test_every_rule_by_hand(cap: float | None, signs: bool, vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, ball = smooth_net(), fa.Linf(0.2)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    zero = torch.zeros(6, dtype=torch.float64)
    leaf = zero.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], 0.02, maximize=True)
    deltas, velocity, left_out = dict.fromkeys(("steepest", "momentum", "raw"), zero), zero, 0
    for bx, by in batches * 3:

        def mean(delta: Tensor, bx: Tensor = bx, by: Tensor = by) -> Tensor:
            nonlocal left_out
            loss, grad = gradients(model, bx, by, delta)
            keep = torch.ones_like(loss) if cap is None else (loss <= cap).double()
            left_out += int((keep == 0).sum())
            return (keep[:, None] * (grad.sign() if signs else grad)).mean(0)

        deltas["steepest"] = (deltas["steepest"] + 0.02 * mean(deltas["steepest"]).sign()).clamp(
            -0.2, 0.2
        )
        g = mean(deltas["momentum"])
        velocity = 0.9 * velocity + g / g.abs().sum()
        deltas["momentum"] = (deltas["momentum"] + 0.02 * velocity.sign()).clamp(-0.2, 0.2)
        deltas["raw"] = (deltas["raw"] + 0.3 * mean(deltas["raw"])).clamp(-0.2, 0.2)
        leaf.grad = mean(leaf.detach())
        adam.step()
        with torch.no_grad():
            leaf.clamp_(-0.2, 0.2)
    deltas["adam"] = leaf.detach()
    assert (left_out > 0) == (cap is not None)
    rules = {
        "steepest": fa.Steepest(0.02), "momentum": fa.Momentum(0.02, 0.9),
        "raw": fa.Gradient(0.3), "adam": fa.Adam(0.02),
    }  # fmt: skip
    for name, rule in rules.items():
        got = fa.universal.gradient(
            ascent(ball, rule), model, batches, 3, loss_cap=cap, signs=signs
        )
        torch.testing.assert_close(got.delta, deltas[name], atol=1e-7, rtol=0)


def test_target(vectors: tuple[Tensor, Tensor]) -> None:
    x, _ = vectors
    model, attack = smooth_net(), fa.pgd(fa.Linf(3.0, None), 0.2)
    for target in range(3):
        uap = fa.universal.gradient(attack, model, [x], 30, target=target, generator=seeded(1))
        assert bool((model(uap.apply(x)).argmax(1) == target).all())


def test_going_on_from_init(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), ascent(fa.L2(0.4), fa.Steepest(0.03))
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    once = fa.universal.gradient(attack, model, batches, 4)
    half = fa.universal.gradient(attack, model, batches, 2)
    copy = half.delta.clone()
    again = fa.universal.gradient(attack, model, batches, 2, init=half)
    assert torch.equal(again.delta, once.delta)
    assert torch.equal(half.delta, copy)
    large = fa.Perturbation(torch.ones(6), fa.L2(9.0))  # of another dtype and ball
    nothing = ascent(fa.L2(0.4), fa.Steepest(0.0))
    got = fa.universal.gradient(nothing, model, batches, init=large).delta
    torch.testing.assert_close(got, torch.full((6,), 0.4 / 6**0.5).double())


def test_start_and_draw(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    random = fa.Attack(fa.Linf(0.2), fa.Steepest(0.0))
    one, same, other = (
        fa.universal.gradient(random, smooth_net(), [(x, y)], generator=seeded(s)).delta
        for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0.05 < float(one.abs().max()) <= 0.2
    assert float(one.min()) < 0  # the box is x + delta's, not delta's
    zero = fa.universal.gradient(ascent(fa.Linf(0.2), fa.Steepest(0.0)), smooth_net(), [(x, y)])
    assert not zero.delta.any()


def test_loaders(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), ascent(fa.Linf(0.2), fa.Steepest(0.05))
    data = TensorDataset(x, y)
    expected = fa.universal.gradient(attack, model, [(x[:8], y[:8]), (x[8:], y[8:])]).delta
    for loader in (
        DataLoader(data, batch_size=8), iter(DataLoader(data, batch_size=8)),
        [[x[:8], y[:8]], [x[8:], y[8:]]],
        [(x[:8], y[:8]), (x[:0], y[:0]), (x[8:], y[8:])],
    ):  # fmt: skip
        got = fa.universal.gradient(attack, model, loader)
        torch.testing.assert_close(got.delta, expected)
    predicted = model(x).argmax(1)
    unlabelled = fa.universal.gradient(attack, model, [x, (x,)]).delta
    torch.testing.assert_close(
        unlabelled, fa.universal.gradient(attack, model, [(x, predicted)] * 2).delta
    )
    fa.universal.gradient(attack, model, [(x, y)], progress=True)


def test_empty_and_wrong_loaders(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), fa.pgd(fa.Linf(0.1))
    cases = [
        ([], ValueError, "`loader` must give batches in every epoch, got none"),
        (iter([(x, y)]), ValueError, "used up"),
        (x, TypeError, "`loader` must give batches, got a tensor"),
        ([(x, y, y)], TypeError, "`loader` must give"),
        ([{"x": x}], TypeError, "`loader` must give .* got a dict"),
        ([(x[:0], y[:0])], ValueError, "empty"),
        ([(x, y), (x[:, :4], y)], (ValueError, RuntimeError), "x|shape"),
        ([(x, [1] * 12)], TypeError, "`y` must be a torch.Tensor, got list"),
    ]
    for loader, error, words in cases:
        with pytest.raises(error, match=words):
            fa.universal.gradient(attack, model, loader, epochs=2)
    for target in (y, 1.0, True):
        with pytest.raises(TypeError, match="`target` must be one class for all inputs"):
            fa.universal.gradient(attack, model, [(x, y)], target=target)
    with pytest.raises(ValueError, match="`epochs` must be at least 1, got 0"):
        fa.universal.gradient(attack, model, [(x, y)], epochs=0)
    with pytest.raises(ValueError, match=r"Auto \(apgd\)"):
        fa.universal.gradient(fa.apgd(fa.Linf(0.1)), model, [(x, y)])
    with pytest.raises(ValueError, match="NaN"):
        fa.universal.gradient(attack, lambda v: model(v) * math.nan, [(x, y)])
    bad = fa.Perturbation(torch.zeros(5), fa.Linf(0.1))
    with pytest.raises(ValueError, match=r"`init` must be \(6,\) like"):
        fa.universal.gradient(attack, model, [(x, y)], init=bad)


@pytest.mark.parametrize("shape", [(8, 1), (8, 8), (4,), (8, 4)])
def test_labels_that_are_not_one_a_sample_are_not_measured(shape: tuple[int, ...]) -> None:
    """(8, 1) beside (8,) would be broadcast: 600% wrong."""
    uap = fa.Perturbation(torch.zeros(6).double(), fa.Linf(0.1))
    words = re.escape(f"`y` must be class labels (8,), got {shape}")
    with pytest.raises(ValueError, match=words):
        fa.universal.measure(uap, smooth_net(), [(torch.rand(8, 6).double(), torch.ones(shape))])


def test_a_universal_perturbation_fools_more_than_noise() -> None:
    g = seeded(7)
    centres = torch.rand(3, 20, generator=g)
    y = torch.randint(0, 3, (300,), generator=g)
    x = (centres[y] + 0.1 * torch.randn(300, 20, generator=g)).clamp(0, 1)
    model = lambda v: -10 * torch.cdist(v, centres)  # noqa: E731
    attack = fa.pgd(fa.Linf(0.3), 0.05)
    uap = fa.universal.gradient(attack, model, [(x[:150], y[:150])], 30, generator=g)
    noise = fa.Perturbation(0.3 * (torch.rand(20, generator=g) - 0.5).sign(), attack.ball)
    clean, random, best = (
        float((model(v).argmax(1) != y)[150:].double().mean())
        for v in (x, noise.apply(x), uap.apply(x))
    )
    assert clean < 0.05
    assert best > random + 0.2
