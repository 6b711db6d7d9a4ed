"""fa.universal.moosavi and averaged: Algorithm 1 one sample at a time, blocks, passes, resuming."""

from __future__ import annotations

import math
import re
import sys

import pytest
import torch
from conftest import image_net, seeded, smooth_net
from tolerance import assert_in_ball
from torch import Tensor, nn

import fastadv as fa

Model = nn.Module
BALLS = {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}
RADII = {"linf": 0.3, "l2": 0.6, "l1": 1.2}


def data(count: int = 60) -> tuple[Tensor, Tensor]:
    g = seeded(8)
    return torch.rand(count, 6, generator=g).double(), torch.randint(0, 3, (count,), generator=g)


def deepfool(model: Model, x: Tensor, steps: int, box: tuple[float, float]) -> tuple[Tensor, bool]:
    """(dr, whether it is across) for one sample: ten backwards, and nothing batched."""
    order = model(x[None])[0].argsort(descending=True)[:10]
    r = torch.zeros_like(x)
    for k in range(steps + 1):
        leaf = (x + 1.02 * r).clamp(*box).requires_grad_()
        f = model(leaf[None])[0]
        if int(f.argmax()) != int(order[0]):
            return leaf.detach() - x, True
        if k == steps:
            break
        grads = [torch.autograd.grad(f[c], leaf, retain_graph=True)[0] for c in order]
        f, pairs = f.detach(), list(zip(order, grads, strict=True))
        ways = [((f[c] - f[order[0]]).abs(), g - grads[0]) for c, g in pairs[1:]]
        away, w = min(ways, key=lambda way: float(way[0] / way[1].norm()))
        r = r + (away / w.norm() + 1e-4) * w / w.norm()
        r = r.clamp((box[0] - x) / 1.02, (box[1] - x) / 1.02)
    return leaf.detach() - x, False


def projected(v: Tensor, norm: str, radius: float) -> Tensor:
    if norm == "linf":
        return v.clamp(-radius, radius)
    if norm == "l2":
        return v * min(1.0, radius / float(v.norm()))
    size = v.abs().sort(descending=True).values
    if float(size.sum()) <= radius:
        return v
    level = (size.cumsum(0) - radius) / torch.arange(1, len(v) + 1)
    return v.sign() * (v.abs() - level[size > level][-1]).clamp(min=0)


def algorithm_1(
    model: Model, x: Tensor, y: Tensor | None, norm: str, radius: float, passes: int, clip: bool
) -> tuple[Tensor, list[tuple[int, int]]]:
    """v, and every update (sample, class that it was led to): one sample after the other."""
    box = (0.0, 1.0) if clip else (-math.inf, math.inf)
    labels = model(x).argmax(1) if y is None else y
    v, updates = torch.zeros_like(x[0]), []
    for _ in range(passes):
        for k in range(len(x)):
            point = (x[k] + v).clamp(*box)
            if int(model(point[None]).argmax()) == int(labels[k]):
                dr, across = deepfool(model, point, 10, box)
                if across:
                    updates.append((k, int(model((point + dr)[None]).argmax())))
                    v = projected(v + dr, norm, radius)
    return v, updates


class Watched:
    """A model that counts its calls."""

    def __init__(self, model: Model) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("count", ["fooled", "wrong"])
@pytest.mark.parametrize("norm", BALLS)
def test_v_is_that_of_one_sample_at_a_time(
    norm: str, count: str, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data(40)
    model, radius = smooth_net(), RADII[norm]
    y = torch.where(torch.rand(len(y), generator=seeded(1)) < 0.9, model(x).argmax(1), y)
    expected, updates = algorithm_1(
        model, x, None if count == "fooled" else y, norm, radius, 2, clip
    )
    ball = BALLS[norm](radius, (0, 1) if clip else None)
    made: list[tuple[int, int]] = []

    def solve(*args: object, **more: object) -> tuple[Tensor, Tensor]:
        dr, found = original(*args, **more)
        delta, sample = args[2:4]
        if bool(found) and bool(dr.any()):
            index = int((x == sample).all(1).nonzero()[0])
            made.append((index, int(model(delta.at(sample) + dr).argmax())))
        return dr, found

    module = sys.modules["fastadv.universal.moosavi"]
    original = module.solve
    monkeypatch.setattr(module, "solve", solve)
    for block, batch in ((None, 40), (1, 40), (7, 25)):
        made.clear()
        passes: list[fa.universal.Pass] = []
        fa.universal.moosavi(
            ball, model, list(zip(x.split(batch), y.split(batch), strict=True)), passes=2,
            fooling_rate=1.0, count=count, block=block, on_pass=passes.append,
        )  # fmt: skip
        assert made == updates
        assert sum(p.updates for p in passes) == len(updates)
        torch.testing.assert_close(passes[-1].perturbation.delta, expected, atol=1e-9, rtol=0)
    assert 10 < len(updates) < 60


def test_blocks_save_forwards_and_change_nothing() -> None:
    x, y = data(400)
    model = Watched(smooth_net())
    runs = {}
    for block in (1, None, 64):
        model.calls = 0
        uap = fa.universal.moosavi(
            fa.L1(2.0, None), model, [(x, y)], passes=2, fooling_rate=1.0, block=block
        )
        runs[block] = uap.delta, model.calls
    for delta, _ in runs.values():
        torch.testing.assert_close(delta, runs[1][0], atol=1e-9, rtol=0)
    assert runs[None][1] < 0.8 * runs[1][1]


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_v_lies_in_its_ball(norm: str, dtype: torch.dtype) -> None:
    net = image_net().eval()
    x = torch.rand(30, 3, 6, 6, generator=seeded(1)).to(dtype)
    ball = BALLS[norm](RADII[norm])
    for search in (fa.universal.moosavi, fa.universal.averaged):
        uap = search(ball, lambda v: net(v.float()), x.split(16), passes=2)
        assert uap.delta.dtype == dtype
        assert_in_ball(uap.delta[None], torch.zeros_like(uap.delta)[None], ball.radius, norm)
        assert float(uap.delta.abs().max()) > 0


def test_rates_are_what_apply_gives_and_the_best_is_kept() -> None:
    x, y = data()
    model = smooth_net()
    passes: list[fa.universal.Pass] = []
    held_out = torch.rand(50, 6, generator=seeded(3)).double()
    uap = fa.universal.moosavi(
        fa.Linf(0.15), model, [(x, y)], passes=4, fooling_rate=1.0, validation=[held_out],
        on_pass=passes.append,
    )  # fmt: skip
    assert [p.number for p in passes] == [1, 2, 3, 4]
    rates = [p.rates.fooled for p in passes]
    for one in passes:
        after = model(one.perturbation.apply(held_out)).argmax(1)
        assert one.rates.fooled == float((after != model(held_out).argmax(1)).double().mean())
        assert (one.rates.wrong, one.rates.samples) == (None, 50)
    assert torch.equal(uap.delta, passes[rates.index(max(rates))].perturbation.delta)
    both = fa.universal.measure(uap, model, [(x[:9], y[:9]), (x[9:], y[9:])])
    assert both.wrong == float((model(uap.apply(x)).argmax(1) != y).double().mean())
    assert str(both) == f"fooled {both.fooled:.3f}, wrong {both.wrong:.3f}, of 60"
    assert fa.universal.measure(fa.Perturbation(torch.zeros(6), uap.ball), model, [x]).fooled == 0


def test_it_stops_at_the_fooling_rate() -> None:
    x, _ = data()
    passes: list[fa.universal.Pass] = []
    more = {"passes": 20, "on_pass": passes.append, "fooling_rate": 0.5}
    uap = fa.universal.moosavi(fa.Linf(0.4), smooth_net(), [x], **more)
    assert len(passes) < 20
    assert passes[-1].rates.fooled >= 0.5
    assert all(p.rates.fooled < 0.5 for p in passes[:-1])
    assert torch.equal(uap.delta, passes[-1].perturbation.delta)


def test_averaged_by_hand() -> None:
    x, _ = data(20)
    model, ball = smooth_net(), fa.Linf(0.1, None)
    labels, v = model(x).argmax(1), torch.zeros(6).double()
    for part in torch.arange(20).split(8):
        total = torch.zeros(6).double()
        for k in part:
            if int(model((x[k] + v)[None]).argmax()) == int(labels[k]):
                dr, across = deepfool(model, x[k] + v, 10, (-math.inf, math.inf))
                total += dr * across
        v = projected(v + total, "linf", 0.1)
    uap = fa.universal.averaged(ball, model, x.split(8), passes=1)
    torch.testing.assert_close(uap.delta, v, atol=1e-9, rtol=0)


def test_an_attack_inside() -> None:
    x, y = data(40)
    model, inner = smooth_net(), fa.pgd(fa.L2(0.5), steps=5)
    runs = [
        fa.universal.moosavi(
            fa.Linf(0.15, None), model, [(x, y)], passes=2, inner=inner, block=block,
            fooling_rate=1.0, generator=seeded(1),
        ).delta
        for block in (1, None)
    ]  # fmt: skip
    torch.testing.assert_close(*runs, atol=1e-9, rtol=0)
    noise = fa.Perturbation(0.15 * torch.randn(6, generator=seeded(2)).sign(), fa.Linf(0.15, None))
    uap = fa.Perturbation(runs[0], noise.ball)
    fooled, random = (fa.universal.measure(v, model, [x]).fooled for v in (uap, noise))
    assert fooled > random
    before = torch.random.get_rng_state()
    fa.universal.moosavi(fa.Linf(0.1), model, [x], passes=1)  # DeepFool draws nothing
    assert torch.equal(torch.random.get_rng_state(), before)


def test_init_and_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    x, _ = data(20)
    model, ball = smooth_net(), fa.Linf(0.2)
    init = fa.Perturbation(torch.full((6,), 0.9), fa.Linf(1.0))
    never = fa.deepfool(steps=0)
    got = fa.universal.moosavi(ball, model, [x], passes=1, init=init, inner=never, progress=True)
    torch.testing.assert_close(got.delta, torch.full((6,), 0.2).double())
    assert float(init.delta[0]) == pytest.approx(0.9)
    error = capsys.readouterr().err
    assert "moosavi 1/1" in error
    assert "updates=0" in error


def test_errors() -> None:
    x, y = data(8)
    model, ball = smooth_net(), fa.Linf(0.1)
    cases = [
        ({"fooling_rate": 0}, ValueError, "`fooling_rate` must be in (0, 1], got 0"),
        ({"passes": 0}, ValueError, "`passes` must be at least 1, got 0"),
        ({"block": 0}, ValueError, "`block` must be at least 1, got 0"),
        ({"count": "right"}, ValueError, "`count` must be one of ('fooled', 'wrong'), got 'right'"),
        ({"inner": "deepfool"}, TypeError, "`inner` must be a DeepFool or an Attack"),
        ({"validation": x}, TypeError, "`validation` must give batches, got a tensor"),
        ({"validation": []}, ValueError, "must give batches in every epoch, got none"),
        ({"loader": x}, TypeError, "`loader` must give batches, got a tensor"),
        ({"loader": []}, ValueError, "`loader` must give batches in every epoch, got none"),
        ({"loader": iter([x])}, ValueError, "used up"),
        ({"loader": [x + 1]}, ValueError, "`x` must lie within the ball's bounds"),
        ({"loader": [x, x[:, :4]]}, ValueError, "`x` must be (1, 6) like"),
        ({"loader": [{"x": x}]}, TypeError, "`loader` must give (x, y) or x, got a dict"),
        ({"count": "wrong", "loader": [x]}, ValueError, "labels"),
        ({"count": "wrong", "validation": [x]}, ValueError, "`validation` must give labels"),
        ({"count": "wrong", "loader": [(x, y[:3])]}, ValueError, "`y` must be (8,)"),
        ({"model": lambda v: model(v) * math.nan}, ValueError, "must be numbers, got NaN"),
        ({"model": lambda v: model(v)[:, 0]}, ValueError, "`model(x)` must be (8, classes)"),
        ({"model": lambda v: model(v).detach()}, ValueError, "differentiable"),
        ({"ball": 0.1}, TypeError, "`ball` must be a ball"),
        ({"init": fa.Perturbation(torch.zeros(5), ball)}, ValueError, "`init` must be (6,) like"),
    ]
    for change, error, words in cases:
        given = {"ball": ball, "model": model, "loader": [(x, y)], "passes": 2, "fooling_rate": 1.0}
        with pytest.raises(error, match=re.escape(words)):
            fa.universal.moosavi(**(given | change))
