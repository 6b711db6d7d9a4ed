"""fa.universal.fast_feature_fool and gd_uap: objectives by hand, halving, hooks, errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import image_net, seeded
from tolerance import assert_in_ball
from torch import Tensor, nn

import fastadv as fa

SEARCHES = (fa.universal.fast_feature_fool, fa.universal.gd_uap)
SHAPE = (3, 6, 6)


def objective(net: nn.Module, v: Tensor, search: object) -> Tensor:
    features = net[0](v)
    if search is fa.universal.gd_uap:
        return (features.square().sum() / 2).log()
    return features.abs().mean().log()


@pytest.mark.parametrize("search", SEARCHES)
def test_steps_by_hand(search: object) -> None:
    net, ball = image_net().double().eval(), fa.Linf(0.2)
    got = search(ball, net, SHAPE, steps=5, step_size=0.01, generator=seeded(1))
    seed = int(torch.randint(0, 2**63 - 1, (), generator=seeded(1)))
    leaf = fa.Linf(0.2, None).sample(torch.zeros(1, *SHAPE).double(), seed).requires_grad_()
    adam = torch.optim.Adam([leaf], 0.01, maximize=True)
    for _ in range(5):
        (leaf.grad,) = torch.autograd.grad(objective(net, leaf, search), leaf)
        adam.step()
        with torch.no_grad():
            leaf.clamp_(-0.2, 0.2)
    torch.testing.assert_close(got.delta, leaf.detach()[0], atol=1e-9, rtol=0)
    assert got.ball == ball


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("ball", [fa.Linf(0.2), fa.L2(1.0), fa.L1(4.0)])
def test_it_excites_the_layers_from_within_the_ball(search: object, ball: fa.Ball) -> None:
    net = image_net().eval()
    got = search(ball, net, SHAPE, steps=60, generator=seeded(1))
    assert_in_ball(got.delta[None], torch.zeros(1, *SHAPE), ball.radius, ball.order)
    noise = fa.Linf(ball.radius, None).sample(torch.zeros(9, *SHAPE), 1)
    noise *= (ball.norm(got.delta[None]) / ball.norm(noise)).float()[:, None, None, None]
    with torch.no_grad():
        best = max(float(objective(net, v[None], search)) for v in noise)
        assert float(objective(net, got.delta[None], search)) > best


def test_halving_validation_and_patience() -> None:
    net, ball = image_net().eval(), fa.Linf(0.3, None)
    x = torch.rand(40, *SHAPE, generator=seeded(2))
    seen: list[int] = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    search = fa.universal.fast_feature_fool
    once = search(ball, net, SHAPE, steps=300, generator=seeded(1))
    assert len(seen) == 301  # and the score of v before it is halved
    seen.clear()
    often = search(ball, net, SHAPE, steps=1500, patience=1, generator=seeded(1))
    assert len(seen) <= 1505
    with torch.no_grad():
        two, one = (float(objective(net, uap.delta[None], search)) for uap in (often, once))
    assert two >= one
    rate = fa.universal.measure(
        search(ball, net, SHAPE, steps=900, validation=[x], generator=seeded(1)), net, [x]
    )
    plain = fa.universal.measure(
        search(ball, net, SHAPE, steps=300, generator=seeded(1)), net, [x]
    )  # the first of the three that `validation` chose from
    assert rate.fooled >= plain.fooled


def test_layers_and_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    more = {"steps": 20, "generator": None}
    by_name, by_module, default, relu = (
        fa.universal.gd_uap(fa.Linf(0.1), net, SHAPE, layers=layers,
                            **(more | {"generator": seeded(1)})).delta
        for layers in (["0"], [net[0]], None, ["1", "3"])
    )  # fmt: skip
    assert torch.equal(by_name, by_module)
    assert torch.equal(by_name, default)
    assert not torch.equal(by_name, relu)
    assert not net[0]._forward_hooks
    fa.universal.gd_uap(fa.Linf(0.1), net, SHAPE, steps=2, progress=True)
    assert "gd-uap" in capsys.readouterr().err


def test_errors() -> None:
    net, ball = image_net(), fa.Linf(0.1)
    broken = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    with torch.no_grad():
        broken[0].weight.fill_(math.nan)

    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = image_net(), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.detach())

    cases = [
        ({"model": net.forward}, TypeError, "`model` must be a torch.nn.Module"),
        ({"model": nn.Linear(3, 2)}, ValueError, "`layers` must be given for a model without"),
        ({"layers": ["conv9"]}, ValueError, "`layers` must be of the model, got 'conv9'"),
        ({"layers": [nn.Conv2d(1, 1, 1)]}, ValueError, "`layers` must be of the model"),
        ({"layers": "0"}, ValueError, "`layers` must be a list of modules or of their names"),
        ({"layers": []}, ValueError, "`layers` must be a list"),
        ({"model": Blocked(), "layers": ["unused"]}, ValueError, "`layers` must run when"),
        ({"model": Blocked()}, ValueError, "differentiable"),
        ({"model": broken}, ValueError, "`model` gave NaN"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"patience": 0}, ValueError, "`patience` must be at least 1, got 0"),
        ({"validation": torch.zeros(1)}, TypeError, "`validation` must give batches"),
        ({"ball": 0.1}, TypeError, "`ball` must be a ball"),
    ]
    for change, error, words in cases:
        given = {"ball": ball, "model": net, "shape": SHAPE, "steps": 2} | change
        with pytest.raises(error, match=re.escape(words)):
            fa.universal.gd_uap(**given)
        assert not net[0]._forward_hooks
