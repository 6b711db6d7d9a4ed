"""A delta smaller than the image, one delta a class, and layers for an objective."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import LinearPair, image_net, seeded, smooth_net
from tolerance import assert_in_ball, assert_in_box
from torch import nn

import fastadv as fa
from fastadv.placement import alike, gather, spread

W = torch.randn(3, 7, 5, generator=seeded(1)).double()
X = torch.rand(9, 3, 7, 5, generator=seeded(2)).double()
Y = torch.zeros(9, dtype=torch.long)
ROUND = (torch.arange(7)[:, None] - 3).square() + (torch.arange(5) - 2).square() < 5
PLACES = [
    ((3, 2, 3), "tiles"),
    ((1, 4, 5), "tiles"),
    ((3, 3, 2), (0, 4, 1)),
    ((2, 1, 1), (1, 0, 0)),
    ((3 * 13,), ROUND),
    ((2 * 13,), ROUND & torch.tensor([True, False, True])[:, None, None]),
]


def options(small: tuple[int, ...] | None, place: object) -> dict[str, object]:
    """What asks `gradient` for such a delta."""
    if isinstance(place, torch.Tensor):
        return {"mask": place}
    return {"delta_shape": small, "offset": place if isinstance(place, tuple) else None}


def linear(rule: fa.rules.Rule, ball: fa.Ball) -> fa.Attack:
    return fa.Attack(ball, rule, objective=fa.margin, start="zero")


@pytest.mark.parametrize(("small", "place"), PLACES)
def test_gather_is_the_transpose_of_spread(small: tuple[int, ...], place: object) -> None:
    delta = torch.randn(2, *small, generator=seeded(3)).double().requires_grad_()
    grads = torch.randn(2, 3, 7, 5, generator=seeded(4)).double()
    whole = spread(delta, (3, 7, 5), place)
    assert whole.shape == grads.shape
    (expected,) = torch.autograd.grad((whole * grads).sum(), delta)
    torch.testing.assert_close(gather(grads, small, place), expected)


def test_where_delta_stands() -> None:
    tiles = fa.Perturbation(torch.tensor([[0.1, 0.2]]), fa.Linf(1.0, None), "tiles")
    x = torch.zeros(2, 2, 5)
    expected = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1]).expand(2, 2, 5)
    assert torch.equal(tiles.apply(x), expected)
    patch = fa.Perturbation(torch.tensor([[0.1, 0.2]]), fa.Linf(1.0, None), (1, 2))
    expected = torch.zeros(2, 2, 5)
    expected[:, 1, 2:4] = torch.tensor([0.1, 0.2])
    assert torch.equal(patch.apply(x), expected)
    many = fa.Perturbation(
        torch.tensor([[0.1, 0.2], [0.3, 0.4]])[:, None], patch.ball, (1, 2), True
    )
    got = many.apply(x, torch.tensor([1, 0]))
    expected[0, 1, 2:4] = torch.tensor([0.3, 0.4])
    assert torch.equal(got, expected)
    assert many.norm() == pytest.approx(0.4)
    assert "place=(1, 2), per_class=True" in repr(many)
    mask = torch.tensor([[False, True], [True, True]])
    masked = fa.Perturbation(torch.tensor([0.1, 0.2, 0.3]), patch.ball, mask)
    expected = torch.tensor([[0.0, 0.1], [0.2, 0.3]])
    assert torch.equal(masked.apply(torch.zeros(3, 2, 2)), expected.expand(3, 2, 2))
    assert torch.equal(masked.whole((2, 2)), expected)
    assert repr(masked).startswith("Perturbation((3,), norm=0.3, ")
    assert repr(masked).endswith(", place=<mask (2, 2)>)")


@pytest.mark.parametrize(("small", "place"), PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_on_a_linear_model(small: tuple[int, ...], place: object, dtype: torch.dtype) -> None:
    """The best delta is radius * sign of the weights under it, summed over the tiles."""
    uap = fa.universal.gradient(
        linear(fa.Steepest(0.1), fa.Linf(0.25)), LinearPair(W), [(X.to(dtype), Y)], 4,
        **options(small, place),
    )  # fmt: skip
    best = gather(W[None], small, place)[0].sign() * 0.25
    assert uap.delta.dtype == dtype
    torch.testing.assert_close(uap.delta.double(), best, atol=1e-6, rtol=0)
    got = uap.apply(X.to(dtype))
    assert_in_ball(got, X.to(dtype), 0.25, "linf")
    assert_in_box(got, 0.0, 1.0)


def test_a_patch_in_l2() -> None:
    w = W[:, 2:4, 1:3]
    for rule in (fa.Steepest(0.1), fa.Momentum(0.1), fa.Gradient(0.1)):
        uap = fa.universal.gradient(
            linear(rule, fa.L2(0.25)), LinearPair(W), [(X, Y)], 30,
            delta_shape=(3, 2, 2), offset=(0, 2, 1),
        )  # fmt: skip
        torch.testing.assert_close(uap.delta, 0.25 * w / w.norm(), atol=1e-6, rtol=0)
        assert_in_ball(uap.apply(X), X, 0.25, "l2")


def test_tiles_as_large_as_the_image_change_nothing() -> None:
    net, y = image_net().double(), torch.arange(5) % 4
    x = torch.rand(5, 3, 6, 6, generator=seeded(5)).double()
    attack = fa.Attack(fa.Linf(0.1), fa.Momentum(0.02), start="uniform")
    whole = fa.universal.gradient(attack, net, [(x, y)], 5, generator=seeded(6))
    for offset in (None, (0, 0, 0)):
        same = fa.universal.gradient(
            attack, net, [(x, y)], 5, generator=seeded(6), delta_shape=(3, 6, 6), offset=offset
        )
        assert torch.equal(same.delta, whole.delta)
        assert torch.equal(same.apply(x), whole.apply(x))


@pytest.mark.parametrize(
    "rule", [fa.Steepest(0.02), fa.Momentum(0.02), fa.Gradient(0.3), fa.Adam(0.02)]
)
def test_per_class_is_a_run_on_each_class(rule: fa.rules.Rule) -> None:
    g = seeded(7)
    x, y = torch.rand(30, 6, generator=g).double(), torch.randint(0, 3, (30,), generator=g)
    y[10:20] %= 2  # a batch without the last class
    attack = fa.Attack(fa.Linf(0.2), rule, start="zero")
    batches = [(x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20)]
    got = fa.universal.gradient(attack, smooth_net(), batches, 3, per_class=4, loss_cap=1.4)
    assert got.delta.shape == (4, 6)
    for label in range(3):
        own = [(bx[by == label], by[by == label]) for bx, by in batches]
        own = [(bx, by) for bx, by in own if len(bx)]
        alone = fa.universal.gradient(attack, smooth_net(), own, 3, loss_cap=1.4)
        torch.testing.assert_close(got.delta[label], alone.delta, atol=1e-12, rtol=0)
    assert not got.delta[3].any()  # none is of that class
    predicted = fa.universal.gradient(attack, smooth_net(), [x], per_class=3).delta
    labelled = [(x, smooth_net()(x).argmax(1))]
    assert torch.equal(
        predicted, fa.universal.gradient(attack, smooth_net(), labelled, per_class=3).delta
    )


def test_one_a_class_fools_more_than_one_for_all() -> None:
    g = seeded(8)
    centres = torch.rand(4, 20, generator=g)
    y = torch.randint(0, 4, (400,), generator=g)
    x = (centres[y] + 0.1 * torch.randn(400, 20, generator=g)).clamp(0, 1)
    model = lambda v: -10 * torch.cdist(v, centres)  # noqa: E731
    attack = fa.bim(fa.Linf(0.3), 0.03)
    data = [(x, y)]
    rates = [
        fa.universal.measure(
            fa.universal.gradient(attack, model, data, 30, per_class=many), model, data
        ).wrong
        for many in (None, 4)
    ]
    assert rates[1] > rates[0] + 0.2


@pytest.mark.parametrize(("small", "place"), [(None, None), *PLACES])
@pytest.mark.parametrize("many", [None, 2])
def test_save_load_and_init(
    small: tuple[int, ...] | None, place: object, many: int | None, tmp_path: Path
) -> None:
    form = {**options(small, place), "per_class": many}
    attack = linear(fa.Steepest(0.02), fa.Linf(0.25))
    data = [(X, torch.arange(9) % 2)]
    half = fa.universal.gradient(attack, LinearPair(W), data, 2, **form)
    half.save(tmp_path / "uap.safetensors")
    loaded = fa.Perturbation.load(tmp_path / "uap.safetensors")
    assert torch.equal(loaded.delta, half.delta)
    assert alike(loaded.place, half.place)
    assert alike(half.place, place)
    assert loaded.per_class == half.per_class == (many == 2)
    assert torch.equal(loaded.apply(X, data[0][1]), half.apply(X, data[0][1]))
    on = fa.universal.gradient(attack, LinearPair(W), data, 2, init=loaded, **form)
    once = fa.universal.gradient(attack, LinearPair(W), data, 4, **form)
    assert torch.equal(on.delta, once.delta)
    leaf = X.clone().requires_grad_()
    near = half.apply(leaf, data[0][1])
    torch.testing.assert_close(near.detach(), half.apply(X, data[0][1]), atol=1e-12, rtol=0)


def test_layers_on_a_linear_layer() -> None:
    """log mean |A delta|, A of one row: sign(A), or -sign(A), by the start's side."""
    net = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 2)).double()
    x, row = torch.rand(9, 6, generator=seeded(9)).double(), net[0].weight.detach()[0]
    start = fa.Perturbation(0.01 * row, fa.Linf(0.3, None))
    for layers in (["0"], [net[0]]):
        attack = fa.Attack(fa.Linf(0.3, None), fa.Steepest(0.05), start="zero")
        uap = fa.universal.gradient(attack, net, [x], 10, layers=layers, init=start)
        torch.testing.assert_close(uap.delta, 0.3 * row.sign())
        away = fa.Perturbation(-start.delta, start.ball)
        uap = fa.universal.gradient(attack, net, [x], 10, layers=layers, init=away)
        torch.testing.assert_close(uap.delta, -0.3 * row.sign())


def test_layers_by_hand() -> None:
    net = image_net().double()
    net.eval()
    x = torch.rand(5, 3, 6, 6, generator=seeded(10)).double()
    delta = 0.1 * torch.randn(3, 6, 6, generator=seeded(11)).double().clamp(-1, 1)
    attack = fa.Attack(fa.Linf(0.1), fa.Gradient(1e-3), start="zero")
    start = fa.Perturbation(delta, attack.ball)
    got = fa.universal.gradient(attack, net, [x], layers=["0", net[2]], init=start).delta
    leaf = (x + delta).clamp(0, 1).requires_grad_()
    terms = [(net[:k](leaf) - net[:k](x)).abs().flatten(1).mean(1).log() for k in (1, 3)]
    (grad,) = torch.autograd.grad(sum(terms).sum(), leaf)
    torch.testing.assert_close(got, (delta + 1e-3 * grad.mean(0)).clamp(-0.1, 0.1))
    assert not any(module._forward_hooks for module in net.modules())


def test_layers_move_more_than_noise() -> None:
    net = image_net()
    x = torch.rand(20, 3, 6, 6, generator=seeded(12))
    attack = fa.Attack(fa.Linf(0.1), fa.Steepest(0.02))
    noise = fa.universal.gradient(
        fa.Attack(attack.ball, fa.Steepest(0.0)), net, [x], generator=seeded(1)
    )
    uap = fa.universal.gradient(attack, net, [x], 20, layers=["0"], generator=seeded(1))
    with torch.no_grad():
        moved = [float((net[0](v.apply(x)) - net[0](x)).abs().mean()) for v in (noise, uap)]
    assert moved[1] > 2 * moved[0]


def test_errors() -> None:
    net, attack = image_net().double(), fa.pgd(fa.Linf(0.1), 0.02)
    x = torch.rand(4, 3, 6, 6, generator=seeded(13)).double()
    y = torch.arange(4)
    zero, l2 = fa.bim(fa.Linf(0.1), 0.02), fa.pgd(fa.L2(0.1), 0.02)
    tile = fa.Perturbation(torch.zeros(3, 2, 2).double(), fa.Linf(0.1), "tiles")
    cases = [
        (attack, {"offset": (0, 0, 0)}, "`offset` places a smaller delta: give its `delta_shape`"),
        (attack, {"delta_shape": (3, 9, 2)}, "`delta_shape` must fit into a sample (3, 6, 6), got"),
        (attack, {"delta_shape": (2, 2)}, "`delta_shape` must fit into a sample"),
        (attack, {"delta_shape": ()}, "`delta_shape` must fit into a sample"),
        (attack, {"delta_shape": (3, 0, 2)}, "`delta_shape` must fit into a sample"),
        (attack, {"delta_shape": (3, 2, 2), "offset": (0, 5, 0)}, "got (3, 2, 2) at (0, 5, 0)"),
        (attack, {"delta_shape": (3, 2, 2), "offset": (0, -1, 0)}, "at (0, -1, 0)"),
        (attack, {"delta_shape": (3, 2, 2), "offset": (0, 0)}, "at (0, 0)"),
        (l2, {"delta_shape": (3, 2, 2)}, "`delta_shape` without `offset` goes with Linf, got L2"),
        (attack, {"per_class": 0}, "`per_class` must be at least 1, got 0"),
        (attack, {"per_class": 3}, "`y` must be from 0 to 2, a delta a class, got 0 to 3"),
        (attack, {"init": tile}, "`init` must be (3, 6, 6) like `x[0]`"),
        (attack, {"init": tile, "delta_shape": (3, 2, 2), "offset": (0, 0, 0)}, "`init` must be"),
        (zero, {"layers": ["0"]}, "`layers` need a start='uniform' or an `init`, got 'zero'"),
        (attack, {"layers": ["nine"]}, "`layers` must be of the model, got 'nine'"),
        (attack, {"layers": ["0"], "target": 1}, "give no `target` with them"),
    ]  # fmt: skip
    for run, options, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            fa.universal.gradient(run, net, [(x, y)], **options)
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module"):
        fa.universal.gradient(attack, net.forward, [(x, y)], layers=["0"])
    with pytest.raises(
        ValueError, match="`place` must be 'tiles', an offset, a mask or None, got 'mosaic'"
    ):
        fa.Perturbation(tile.delta, tile.ball, "mosaic")
    with pytest.raises(ValueError, match=re.escape("`delta` must fit into a sample (3, 1, 6)")):
        tile.apply(x[:, :, :1])
    many = fa.Perturbation(torch.zeros(3, 3, 6, 6).double(), fa.Linf(0.1), per_class=True)
    for labels, words in (
        (None, "`y` must be class labels (4,) for one delta a class, got None"),
        (y[:2], "got (2,) of int64"),
        (y.double(), "got (4,) of float64"),
        (y, "`y` must be from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            many.apply(x, labels)
