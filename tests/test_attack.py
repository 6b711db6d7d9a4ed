"""Attacks: closed forms on linear models, restarts, stops, targets, radii, batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import LinearPair, seeded, smooth_net
from tolerance import DTYPES, assert_in_ball, assert_in_box
from torch import Tensor

import fastadv as fa

W = torch.tensor([0.5, -2.0, 0.0, 1.0, -0.25], dtype=torch.float64)
X = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.3, 0.95, 0.02]], dtype=torch.float64)
Y = torch.zeros(2, dtype=torch.long)
ATTACKS = {
    "fgsm": lambda ball: fa.fgsm(ball),
    "bim": lambda ball: fa.bim(ball, steps=30),
    "pgd": lambda ball: fa.pgd(ball, steps=60),
    "mi_fgsm": lambda ball: fa.mi_fgsm(ball, steps=30),
    "apgd": lambda ball: fa.apgd(ball, steps=60),
}


@pytest.mark.parametrize("objective", [fa.cross_entropy, fa.margin])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_linf_optimum_of_a_linear_model(
    name: str, bounds: tuple[float, float] | None, objective: fa.Objective
) -> None:
    """The largest w . x in the ball and the box is at x + radius * sign(w), clamped."""
    attack = replace(ATTACKS[name](fa.Linf(0.2, bounds)), objective=objective)
    # apgd keeps the first iterate that fools, which is no optimum: from far inside the class none.
    model = LinearPair(W) if name != "apgd" else _never_fooled(W)
    got = attack.run(model, X, Y, generator=seeded(0))
    best = X + 0.2 * W.sign()
    best = best if bounds is None else best.clamp(0, 1)
    moved = W != 0
    torch.testing.assert_close(got.x_adv[:, moved], best[:, moved], atol=1e-9, rtol=0)


def _never_fooled(w: Tensor) -> fa.Objective:
    inner = LinearPair(w)
    return lambda x: inner(x) + torch.tensor([9.0, 0.0], dtype=x.dtype)


@pytest.mark.parametrize("name", ["bim", "pgd", "mi_fgsm", "apgd", "fgsm"])
def test_l2_optimum_of_a_linear_model(name: str) -> None:
    """x + radius * w / ||w||."""
    model = _never_fooled(W)
    ball = fa.L2(0.2, None)
    attack = fa.pgd(ball, 0.2, 60) if name == "pgd" else ATTACKS[name](ball)
    got = attack(model, X, Y, generator=seeded(0))
    # apgd's steps shrink before it is all the way round; the others get there.
    close = 2e-3 if name == "apgd" else 1e-9
    torch.testing.assert_close(got, X + 0.2 * W / W.norm(), atol=close, rtol=0)


def test_l1_optimum_of_a_linear_model() -> None:
    """All of the radius on the largest |w|; with a box the next takes what the first cannot."""
    model = _never_fooled(W)
    attack = fa.Attack(fa.L1(0.7, None), fa.Steepest(0.1, top=0.2), 40)
    got = attack(model, X, Y, generator=seeded(0))
    best = X.clone()
    best[:, 1] -= 0.7
    torch.testing.assert_close(got, best, atol=1e-6, rtol=0)
    attack = fa.Attack(fa.L1(0.7), fa.Gradient(0.3), 400, objective=fa.margin)
    got = attack(model, X, Y, generator=seeded(0))
    best = X.clone()
    best[0, 1], best[0, 3] = 0.0, 0.7  # .5 down to the box, .2 for the next
    best[1, 1] = 0.2
    torch.testing.assert_close((got * W).sum(1), (best * W).sum(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ball", [fa.Linf, fa.L2, fa.L1])
def test_attacks_stay_in_ball_and_box_exactly(ball: type[fa.Ball], dtype: torch.dtype) -> None:
    x = torch.rand(4, 6, generator=seeded(1)).to(dtype)
    y = torch.zeros(4, dtype=torch.long)
    model = smooth_net(torch.float32)
    rules = [fa.Steepest(0.02), fa.Gradient(0.5), fa.Momentum(0.02), fa.Adam(0.02)]
    rules += [] if ball is fa.L1 else [fa.Auto()]
    for rule in rules:
        attack = fa.Attack(ball(8 / 255), rule, 5, restarts=2)
        got = attack(lambda v: model(v.float()), x, y)
        assert got.dtype == dtype
        assert_in_ball(got, x, 8 / 255, attack.ball.order)
        assert_in_box(got, 0.0, 1.0)
        assert not torch.equal(got, x)


def test_restarts_keep_each_samples_best(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model, ball = smooth_net(), fa.Linf(0.05)
    seed = int(torch.randint(0, 2**63 - 1, (), generator=seeded(2)))
    rule, runs = fa.Steepest(0.01), []
    for restart in range(5):
        v = ball.sample(x, seed, stream=restart)
        one = fa.Attack(fa.Linf(math.inf), fa.Steepest(0.0), 0, start="zero").run(model, v, y)
        runs.append((v, one.success, one.loss))
    got = fa.Attack(ball, rule, 0, restarts=5).run(model, x, y, generator=seeded(2))
    for i in range(len(x)):
        rank = [(bool(s[i]), float(loss[i])) for _, s, loss in runs]
        best = max(range(5), key=rank.__getitem__)
        assert torch.equal(got.x_adv[i], runs[best][0][i])
        assert (bool(got.success[i]), float(got.loss[i])) == pytest.approx(rank[best])
    assert (
        len({max(range(5), key=[float(r[2][i]) for r in runs].__getitem__) for i in range(12)}) > 1
    )
    assert got.forwards == got.forwards_full == 5 * len(x)
    more = fa.Attack(ball, rule, 3, restarts=4).run(model, x, y, generator=seeded(2))
    less = fa.Attack(ball, rule, 3, restarts=1).run(model, x, y, generator=seeded(2))
    assert bool((more.success >= less.success).all())
    same = more.success == less.success
    assert bool((more.loss[same] >= less.loss[same] - 1e-12).all())


def test_restarts_prefer_the_fooled_to_the_larger_loss() -> None:
    """A loss that falls where the model is fooled: half of the starts, x above .5."""
    x = torch.full((30, 1), 0.5, dtype=torch.float64)
    y = torch.zeros(30, dtype=torch.long)
    attack = fa.Attack(fa.Linf(0.3), fa.Steepest(0.0), 0, lambda z, y: -z[:, 1], restarts=5)
    model = lambda v: torch.cat([torch.full_like(v, 0.5), v], 1)  # noqa: E731
    got = attack.run(model, x, y, generator=seeded(1))
    assert torch.equal(got.success, got.x_adv[:, 0] > 0.5)
    assert got.success.double().mean() > 0.8  # 1 - 2^-5
    assert torch.equal(got.loss, -got.x_adv[:, 0])


@pytest.mark.parametrize("rule", [fa.Steepest(0.03), fa.Momentum(0.02), fa.Adam(0.03)])
@pytest.mark.parametrize("restarts", [1, 3])
def test_stop_fooled_is_any_iterate(
    rule: fa.rules.Rule, restarts: int, vectors: tuple[Tensor, Tensor]
) -> None:
    x, y = vectors
    model = smooth_net()
    y = model(x).argmax(1)
    ball, seen = fa.Linf(0.4), []

    def watched(v: Tensor) -> Tensor:
        logits = model(v)
        seen.append((v.detach().clone(), logits.detach().argmax(1)))
        return logits

    full = fa.Attack(ball, rule, 12, restarts=restarts)
    full.run(watched, x, y, generator=seeded(3))
    fooled_at = torch.stack([p != y for _, p in seen])
    any_iterate = fooled_at.any(0)
    assert bool(any_iterate.any())
    assert bool((~any_iterate).any())
    full_forwards, states = sum(len(v) for v, _ in seen), [v for v, _ in seen]
    stopped = fa.Attack(ball, rule, 12, restarts=restarts, stop="fooled")
    got = stopped.run(model, x, y, generator=seeded(3))
    assert torch.equal(got.success, any_iterate)
    assert torch.equal(model(got.x_adv).argmax(1) != y, any_iterate)
    assert got.forwards_full == full_forwards
    first = fooled_at.int().argmax(0)
    for i in any_iterate.nonzero()[:, 0].tolist():  # and the iterate kept is the first that fools
        torch.testing.assert_close(got.x_adv[i], states[int(first[i])][i], atol=1e-12, rtol=0)
    assert got.forwards < full_forwards


def test_stop_fooled_forwards_are_counted() -> None:
    """w . x passes 0 at step 1, 3 and never."""
    x = torch.tensor([[0.45], [0.25], [0.0]], dtype=torch.float64)
    counted = []

    def model(v: Tensor) -> Tensor:
        counted.append(len(v))
        return torch.cat([torch.full_like(v, 0.5), v], 1)

    attack = fa.bim(fa.Linf(0.35), 0.1, 4, stop="fooled")
    got = attack.run(model, x, Y[:1].expand(3))
    assert counted == [3, 3, 2, 2, 3]  # at .45 .25 0; .55 .35 .1; .45 .2; .55 .3; and the verdict
    assert got.forwards == sum(counted)
    assert got.forwards_full == 15
    torch.testing.assert_close(got.x_adv[:, 0], torch.tensor([0.55, 0.55, 0.35]).double())
    assert got.success.tolist() == [True, True, False]


def test_radius_of_each_sample(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = LinearPair(W.new_tensor([1.0, -1, 2, -2, 3, -3]))
    radii = torch.linspace(0, 0.5, len(x), dtype=torch.float64)
    for ball in (fa.Linf(9.0), fa.L2(9.0), fa.L1(9.0)):
        for attack in (fa.bim(ball, 0.1, 4), fa.bim(ball, 0.1, 4, stop="fooled")):
            got = attack(model, x, Y[:1].expand(12), radius=radii)
            assert_in_ball(got, x, radii, ball.order)
            for i, r in enumerate(radii.tolist()):
                one = attack(model, x[i : i + 1], Y[:1], radius=r)
                torch.testing.assert_close(got[i : i + 1], one, atol=1e-12, rtol=0)
    got = fa.apgd(fa.L2(9.0), 10)(smooth_net(), x, y, radius=radii)
    assert_in_ball(got, x, radii, "l2")
    assert torch.equal(got[0], x[0])


@pytest.mark.parametrize("objective", [fa.cross_entropy, fa.margin, fa.dlr])
def test_targeted_attacks_reach_their_target(objective: fa.Objective) -> None:
    g = seeded(4)
    weight = torch.randn(5, 8, generator=g).double()
    x, y = torch.rand(20, 8, generator=g).double(), torch.zeros(20, dtype=torch.long)
    target = torch.randint(1, 5, (20,), generator=g)

    def model(v: Tensor) -> Tensor:
        return v @ weight.T

    free = (-math.inf, math.inf)
    for make in (fa.pgd, fa.apgd, fa.mi_fgsm):
        attack = make(fa.Linf(2.0, free), steps=40, objective=objective)
        got = attack.run(model, x, y, target=target, generator=seeded(1))
        assert torch.equal(got.success, model(got.x_adv).argmax(1) == target)
        z = model(got.x_adv)
        if objective == fa.dlr:  # its targeted form asks for z_t over z_y, and no more
            assert bool((z.gather(1, target[:, None])[:, 0] > z[:, 0]).all())
        else:
            assert got.success.double().mean() > 0.9
    one = fa.fgsm(fa.Linf(0.1, None), objective=fa.margin)
    logits, others = model(x), torch.ones(20, 5).scatter(1, target[:, None], 0).bool()
    rival = logits.masked_fill(~others, -math.inf).argmax(1)
    expected = x + 0.1 * (weight[target] - weight[rival]).sign()  # up z_t - max of the others
    torch.testing.assert_close(one(model, x, target=target), expected)


def test_y_none_takes_the_predictions(vectors: tuple[Tensor, Tensor]) -> None:
    x, _ = vectors
    model = smooth_net()
    attack = fa.bim(fa.Linf(0.1), steps=3)
    assert torch.equal(attack(model, x), attack(model, x, model(x).argmax(1)))
    assert not torch.equal(attack(model, x), attack(model, x, (model(x).argmax(1) + 1) % 3))


def test_the_split_into_batches_does_not_matter() -> None:
    x = torch.rand(10, 5, generator=seeded(6))
    y = torch.zeros(10, dtype=torch.long)
    for rule, ball in (
        (fa.Steepest(0.05), fa.Linf(0.1)), (fa.Momentum(0.05), fa.L2(0.1)), (fa.Auto(), fa.L2(0.1)),
    ):  # fmt: skip
        attack = fa.Attack(ball, rule, 6, restarts=2)
        model = LinearPair(W.float())
        whole = attack(model, x, y, generator=seeded(7))
        parts = [
            attack(model, x[a:b], y[a:b], generator=seeded(7), offset=a)
            for a, b in ((0, 1), (1, 4), (4, 10))
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_steps_0_and_radius_0(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    for stop in (None, "fooled"):
        result = fa.bim(fa.Linf(0.1), steps=0, stop=stop).run(model, x, y)
        assert torch.equal(result.x_adv, x)
        assert torch.equal(result.success, model(x).argmax(1) != y)
    for ball in (fa.Linf(0.0), fa.L2(0.0), fa.L1(0.0)):
        assert torch.equal(fa.pgd(ball, 0.1)(model, x, y), x)
    assert torch.equal(fa.apgd(fa.Linf(0.0), 5)(model, x, y), x)
    assert torch.equal(fa.apgd(fa.Linf(0.1), 0, start="zero")(model, x, y), x)


def test_the_result_tells_loss_and_success_at_x_adv(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    for attack in (fa.pgd(fa.L2(0.3)), fa.apgd(fa.L2(0.3), 10), fa.pgd(fa.L1(1.0), stop="fooled")):
        got = attack.run(model, x, y)
        logits = model(got.x_adv)
        torch.testing.assert_close(got.loss, fa.cross_entropy(logits, y).detach())
        assert torch.equal(got.success, logits.argmax(1) != y)
        clean = fa.cross_entropy(model(x), y)
        assert bool((got.loss > clean)[~got.success].all())


def test_many_labels_and_probabilities() -> None:
    g = seeded(8)
    weight, x = torch.randn(4, 6, generator=g).double(), torch.rand(9, 6, generator=g).double()
    labels = (x @ weight.T > 0).double()
    attack = fa.pgd(fa.Linf(0.3), objective=fa.binary_cross_entropy, stop="fooled")
    got = attack.run(lambda v: v @ weight.T, x, labels)
    wrong = ((got.x_adv @ weight.T > 0).double() != labels).any(1)
    assert torch.equal(got.success, wrong)
    assert bool(wrong.any())
    clean = (x @ weight.T).softmax(1)
    got = fa.pgd(fa.Linf(0.3), objective=fa.kl).run(lambda v: v @ weight.T, x)
    p = (got.x_adv @ weight.T).softmax(1)
    torch.testing.assert_close(got.loss, (clean * (clean / p).log()).sum(1))
    assert bool((got.loss > 0.01).all())


def test_attacks_are_values() -> None:
    one, same = fa.pgd(fa.Linf(8 / 255)), fa.pgd(fa.Linf(8 / 255))
    assert one == same
    assert hash(one) == hash(same) != hash(fa.pgd(fa.Linf(8 / 255), steps=11))
    assert "Linf(radius=0.031" in repr(one)
    assert "cross_entropy" in repr(one)
    assert fa.fgsm(fa.L2(0.5)).start == fa.bim(fa.L2(0.5)).start == "zero"
    assert fa.pgd(fa.L2(0.5), steps=5).rule.step_size == pytest.approx(0.25)
    assert fa.mi_fgsm(fa.L2(0.5), steps=5).rule == fa.Momentum(0.1, 1.0)
