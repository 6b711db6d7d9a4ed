"""Further forms of fa.universal.gradient: penalties and classes."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import LinearPair, seeded, smooth_net
from tolerance import assert_in_ball
from torch import Tensor

import fastadv as fa

Penalty = fa.universal.Penalty
NORMS = ("l1", "l2", "squared l2", "linf")
W = torch.tensor([0.5, -2.0, 0.0, 1.0, -0.25, 0.0], dtype=torch.float64)


def norm(d: Tensor, name: str) -> Tensor:
    if name == "squared l2":
        return d.square().sum()
    return torch.linalg.vector_norm(d, {"l1": 1, "l2": 2, "linf": math.inf}[name])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("size", [0.01, 0.4, 9.0])
def test_the_proximal_point_is_the_best(name: str, size: float) -> None:
    start = torch.randn(3, 4, generator=seeded(1)).double()
    got = start.clone()
    Penalty(name, 0.5).step_(got, size)

    def objective(d: Tensor) -> float:
        return float(0.5 * size * norm(d.flatten(), name) + (d - start).square().sum() / 2)

    g = seeded(2)
    best = objective(got)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(200):
            other = got + scale * torch.randn(3, 4, generator=g).double()
            assert objective(other) >= best - 1e-9
    assert objective(torch.zeros_like(start)) >= best - 1e-9


def test_proximal_points_by_hand() -> None:
    d = torch.tensor([3.0, -1.0, 0.5, 0.0]).double()
    expected = {
        "l1": torch.tensor([2.0, 0, 0, 0]),
        "l2": d * (1 - 1 / float(d.norm())),
        "squared l2": d / 3,
        "linf": torch.tensor([2.0, -1, 0.5, 0]),
    }
    for name, best in expected.items():
        got = d.clone()
        Penalty(name, 0.5).step_(got, 2.0)
        torch.testing.assert_close(got, best.double(), atol=1e-6, rtol=0)
        assert float(Penalty(name, 0.5).value(d)) == pytest.approx(0.5 * float(norm(d, name)))


@pytest.mark.parametrize("name", NORMS)
def test_delta_shrinks_as_the_weight_grows(name: str, vectors: tuple[Tensor, Tensor]) -> None:
    attack = fa.Attack(fa.L2(2.0, None), fa.Gradient(0.5), start="zero")
    lengths = []
    for weight in (0.0, 0.01, 0.03, 5.0):
        uap = fa.universal.gradient(
            attack, smooth_net(), [vectors], 60, penalty=Penalty(name, weight)
        )
        assert_in_ball(uap.delta[None], torch.zeros(1, 6).double(), 2.0, "l2")
        lengths.append(float(norm(uap.delta, name)))
    if name == "squared l2":  # it shrinks and never ends
        assert 0 < lengths[3] < 1e-2
        lengths[3] = 0.0
    assert lengths[0] > lengths[1] > lengths[2] >= lengths[3] == 0
    plain = fa.universal.gradient(attack, smooth_net(), [vectors], 3).delta
    none = fa.universal.gradient(attack, smooth_net(), [vectors], 3, penalty=Penalty(name, 0.0))
    torch.testing.assert_close(none.delta, plain, atol=1e-9, rtol=0)


def test_the_sign() -> None:
    """On a linear margin w . delta -+ e * ||delta||^2 the best delta is w / (2 e), or the edge."""
    x, y = torch.rand(9, 6, generator=seeded(1)).double(), torch.zeros(9, dtype=torch.long)
    attack = fa.Attack(fa.L2(2.0, None), fa.Gradient(0.2), objective=fa.margin, start="zero")
    inside = fa.universal.gradient(
        attack, LinearPair(W), [(x, y)], 200, penalty=Penalty("squared l2", 1.0)
    )
    torch.testing.assert_close(inside.delta, W / 2, atol=1e-6, rtol=0)
    edge = fa.universal.gradient(
        attack, LinearPair(W), [(x, y)], 200, penalty=Penalty("squared l2", 1.0, sign=1)
    )
    torch.testing.assert_close(edge.delta, 2 * W / W.norm(), atol=1e-6, rtol=0)


def test_classes_are_fooled_and_the_others_kept() -> None:
    g = seeded(7)
    centres = torch.rand(4, 20, generator=g)
    y = torch.randint(0, 4, (400,), generator=g)
    x = (centres[y] + 0.1 * torch.randn(400, 20, generator=g)).clamp(0, 1)
    model = lambda v: -10 * torch.cdist(v, centres)  # noqa: E731
    attack = fa.bim(fa.Linf(0.3), 0.03)
    uap = fa.universal.gradient(attack, model, [(x, y)], 40, classes=[0, 2])
    plain = fa.universal.gradient(attack, model, [(x, y)], 40)
    chosen = torch.isin(y, torch.tensor([0, 2]))

    def wrong(one: fa.Perturbation, part: Tensor) -> float:
        return float((model(one.apply(x)).argmax(1) != y)[part].double().mean())

    assert wrong(uap, chosen) > 0.4
    assert wrong(uap, ~chosen) < 0.1 < wrong(plain, ~chosen)


def test_classes_by_hand(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, attack = smooth_net(), fa.Attack(fa.Linf(0.2), fa.Gradient(0.3), start="zero")
    delta = torch.zeros(6).double()
    for _ in range(3):
        leaf = (x + delta).clamp(0, 1).requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(leaf), y, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        sign = torch.where(y == 1, 1.0, -1.0) * (loss.detach() <= 1.2)
        delta = (delta + 0.3 * (sign[:, None] * grad).mean(0)).clamp(-0.2, 0.2)
    got = fa.universal.gradient(attack, model, [(x, y)], 3, classes=[1], loss_cap=1.2)
    torch.testing.assert_close(got.delta, delta, atol=1e-7, rtol=0)


def test_errors(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    raw = fa.Attack(fa.Linf(0.2), fa.Gradient(0.3))
    for make, words in (
        (lambda: Penalty("l3", 1.0), "`norm` must be one of ('l1', 'l2', 'squared l2', 'linf')"),
        (lambda: Penalty("l1", -1.0), "`weight` must be finite and at least 0, got -1.0"),
        (lambda: Penalty("l1", 1.0, sign=0), "`sign` must be -1 or 1, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            make()
    for rule in (fa.Steepest(0.1), fa.Momentum(0.1), fa.Adam(0.1)):
        with pytest.raises(ValueError, match="`penalty` goes with the rule Gradient, got"):
            fa.universal.gradient(
                fa.Attack(fa.Linf(0.2), rule), smooth_net(), [(x, y)], penalty=Penalty("l1", 1.0)
            )
    kl = fa.Attack(fa.Linf(0.2), fa.Gradient(0.3), objective=fa.kl)
    for attack, options, words in (
        (raw, {"classes": [0], "target": 1}, "give no `target` with them"),
        (raw, {"classes": []}, "`classes` must be one or more"),
        (kl, {"classes": [0]}, "`classes` must be one or more of an objective's class labels"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            fa.universal.gradient(attack, smooth_net(), [x], **options)
