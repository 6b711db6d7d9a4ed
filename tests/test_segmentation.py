"""fa.universal.segmentation: closed forms on per-pixel linear models, targets, tiles, and rates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import seeded
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_in_ball
from torch import Tensor, nn

import fastadv as fa
from fastadv.universal.scenes import VOID, fill

N, C, H, W = 6, 3, 8, 10
RADIUS = 0.2
BALL = fa.Linf(RADIUS, None)
segmentation, measure = fa.universal.segmentation, fa.universal.measure_pixels


def two(scale: float = 3.0) -> nn.Module:
    """Two classes by a 1x1 convolution: logits (0, w . x) at every pixel."""
    net = nn.Conv2d(C, 2, 1, bias=False).double()
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    net.weight.data = scale * torch.stack([0 * w, w])[:, :, None, None]
    return net


def net(classes: int = 4) -> nn.Module:
    """With a neighbourhood, batch norm in train mode, and ReLU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Sequential(
            nn.Conv2d(C, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1)
        ).double()
    layers[3].weight.data *= 4
    return layers


def scenes() -> Tensor:
    return torch.rand(N, C, H, W, generator=seeded(2), dtype=torch.float64)


def checkerboard(void: int = 255) -> Tensor:
    """Labels 0 and 1, and a row of void."""
    y = (torch.arange(H)[:, None] + torch.arange(W)) % 2
    y[3] = void
    return y


def test_static_target_of_a_linear_model() -> None:
    """v goes where each pixel's label is, by the signs of w; void ones stay."""
    model, target = two(), checkerboard()
    uap = segmentation(BALL, model, [scenes()], target=target, steps=12, confidence=None)
    sign = torch.where(target == 255, 0, 2 * target - 1).double()
    w = model.weight.detach()[1, :, 0, 0]
    torch.testing.assert_close(uap.delta, RADIUS * sign * w.sign()[:, None, None])
    assert uap.ball == BALL
    void = segmentation(
        BALL, model, [scenes()], target=checkerboard(1), steps=2, ignore_index=1, confidence=None
    )
    assert not void.delta[:, target != 0].any()


def test_untargeted_of_a_linear_model() -> None:
    model, x = two(), scenes()
    y = checkerboard().expand(N, H, W)
    uap = segmentation(BALL, model, [(x[:4], y[:4]), (x[4:], y[4:])], confidence=None)
    seek = segmentation(
        BALL, model, [x], target=1 - checkerboard(-254), ignore_index=255, confidence=None
    )
    assert torch.equal(uap.delta, seek.delta)  # of two classes, to miss one is to seek the other
    own = segmentation(BALL, model, [x], confidence=None)
    said = segmentation(BALL, model, [(x, model(x).argmax(1))], confidence=None)
    assert torch.equal(own.delta, said.delta)


@pytest.mark.parametrize("tile", [(4, 5), (3, 4), (1, 1), (H, W), (H, 3)])
def test_a_tile_sums_its_gradients(tile: tuple[int, int]) -> None:
    """By hand: sign of the gradient summed over the tiles, the image's last ones cut off."""
    model, x, target = net().eval(), scenes(), checkerboard()
    uap = segmentation(BALL, model, [x], target=target, steps=4, tile=tile, confidence=None)
    v = torch.zeros(C, *tile, dtype=torch.float64)
    h, w = tile
    for _ in range(4):
        leaf = v.clone().requires_grad_()
        full = torch.stack([leaf[:, i % h, j % w] for i in range(H) for j in range(W)], 1)
        z = model(x + full.view(C, H, W))
        loss = nn.functional.cross_entropy(z, target.expand(N, H, W), ignore_index=255)
        (grad,) = torch.autograd.grad(loss, leaf)
        v = (v - RADIUS / 10 * grad.sign()).clamp(-RADIUS, RADIUS)
    torch.testing.assert_close(uap.delta, v)
    whole = v.repeat(1, -(-H // h), -(-W // w))[:, :H, :W]
    torch.testing.assert_close(uap.apply(x), x + whole)


@pytest.mark.parametrize("seek", [True, False])
def test_sure_pixels_have_no_gradient(seek: bool) -> None:
    """Left of the middle every pixel is sure of its target, right of it none is."""
    x = torch.zeros(1, C, H, W, dtype=torch.float64)
    x[..., : W // 2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # p(1) = .95
    x[..., W // 2 :] = torch.tensor([0.3, 0.0, 0.0])[:, None, None]  # p(1) = .71
    ones = torch.ones(H, W, dtype=torch.long)
    batch: Any = x if seek else (x, 0 * ones[None])
    target = ones if seek else None
    uap = segmentation(BALL, two(), [batch], target=target, steps=1)
    assert not uap.delta[..., : W // 2].any()
    assert bool((uap.delta[..., W // 2 :].abs() == RADIUS / 10).all())
    uap = segmentation(BALL, two(), [batch], target=target, steps=1, confidence=None)
    assert bool((uap.delta.abs() == RADIUS / 10).all())


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_fill_by_brute_force(seed: int, share: float) -> None:
    g = seeded(seed)
    height, width = (int(n) for n in torch.randint(1, 9, (2,), generator=g))
    labels = torch.randint(0, 50, (2, height, width), generator=g)
    holes = torch.rand(2, height, width, generator=g) < share
    filled = fill(labels, holes)
    assert torch.equal(filled[~holes], labels[~holes])
    for n, i, j in holes.nonzero().tolist():
        there = (~holes[n]).nonzero().tolist()
        if not there:
            assert filled[n, i, j] == VOID
            continue
        least = min((a - i) ** 2 + (b - j) ** 2 for a, b in there)
        near = {int(labels[n, a, b]) for a, b in there if (a - i) ** 2 + (b - j) ** 2 == least}
        assert int(filled[n, i, j]) in near


def test_removing_a_class() -> None:
    """By hand: weighted cross-entropy to the filled clean prediction, for three steps."""
    model, x = net().eval(), scenes()
    clean = model(x).argmax(1)
    remove = fa.universal.Remove(int(clean.flatten().mode().values), 0.9)
    objects = clean == remove.label
    goal = fill(clean, objects)
    assert 0 < int(objects.sum()) < objects.numel()
    v = torch.zeros(C, H, W, dtype=torch.float64)
    for _ in range(3):
        leaf = v.clone().requires_grad_()
        each = nn.functional.cross_entropy(model(x + leaf), goal, reduction="none")
        (grad,) = torch.autograd.grad((each * torch.where(objects, 0.9, 0.1)).sum(), leaf)
        v = v - RADIUS / 10 * grad.sign()
    uap = segmentation(BALL, model, x.split(4), target=remove, steps=3, confidence=None)
    torch.testing.assert_close(uap.delta, v)
    rates = measure(uap, model, x.split(4), target=remove)
    after = model(x + uap.delta).argmax(1)

    def share(flags: Tensor) -> object:
        return pytest.approx(float(flags.double().mean()))

    assert rates.hidden == share((after != remove.label)[objects])
    assert rates.preserved == share((after == clean)[~objects])
    assert rates.success == share(after == goal)
    assert rates.clean == share(clean == goal)
    assert rates.samples == N
    better = measure(segmentation(BALL, model, [x], target=remove), model, [x], target=remove)
    assert (better.hidden or 0) > (rates.hidden or 0) > 0
    assert "hidden" in str(better)


def test_rates() -> None:
    model, x = two(), scenes()
    y = checkerboard().expand(N, H, W)
    uap = segmentation(BALL, model, [x], target=checkerboard())
    static = measure(uap, model, [x], target=checkerboard())
    missed = measure(uap, model, [(x, y)])
    assert static.success == pytest.approx(1 - missed.success)
    assert static.clean < static.success
    assert (static.hidden, static.preserved) == (None, None)
    assert measure(uap, model, [x]).clean == 0
    nothing = torch.full((H, W), 255)
    assert measure(uap, model, [x], target=nothing).success == 0


@pytest.mark.parametrize("ball", [fa.Linf(0.1), fa.L2(0.7), fa.L1(5.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_feasible_and_better(ball: fa.Ball, dtype: torch.dtype) -> None:
    model, x = net().to(dtype).eval(), scenes().to(dtype)
    uap = segmentation(ball, model, [x], target=checkerboard(), steps=15)
    assert uap.delta.dtype == dtype
    assert_in_ball(uap.delta[None], torch.zeros_like(uap.delta)[None], ball.radius, ball.order)
    rates = measure(uap, model, [x], target=checkerboard())
    assert rates.success > rates.clean


def test_batches_to_a_step_and_going_on() -> None:
    model, x, target = net().eval(), scenes(), checkerboard()
    options: dict[str, Any] = {"target": target, "tile": (4, 5)}
    one = segmentation(BALL, model, [x], steps=4, **options)
    cut = segmentation(BALL, model, x.split(1), steps=4, batches=N, **options)
    torch.testing.assert_close(one.delta, cut.delta)
    torch.testing.assert_close(
        segmentation(BALL, model, x.split(4), steps=4, **options).delta, one.delta
    )
    half = segmentation(BALL, model, [x], steps=2, **options)
    on = segmentation(BALL, model, [x], steps=2, init=half, **options)
    assert torch.equal(on.delta, one.delta)
    small = segmentation(BALL, model, x.split(2), steps=4, batches=2, **options)  # halves in turn
    assert not torch.equal(small.delta, one.delta)


def test_side_effects(capsys: pytest.CaptureFixture[str]) -> None:
    model, x, target = net().train(), scenes(), checkerboard()
    model[0].eval()
    state, copy_x = copy.deepcopy(model.state_dict()), x.clone()
    random = torch.get_rng_state()
    for goal in (target, fa.universal.Remove(1), None):
        uap = segmentation(BALL, model, [x], target=goal, steps=2, progress=True)
        measure(uap, model, [x], target=goal)
    assert "success" in capsys.readouterr().err
    assert torch.equal(x, copy_x)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model] == [False, True, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        again = segmentation(BALL, model, [x], target=None, steps=2)
    assert torch.equal(again.delta, uap.delta)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": "sky"}, TypeError, "`target` must be a tensor"),
        ({"target": torch.zeros(1, H, W).long()}, ValueError, r"`target` must be \(H, W\)"),
        ({"target": torch.zeros(H, W + 1).long()}, ValueError, r"`target` must be \(6, 8, 10\)"),
        ({"target": torch.full((H, W), 9)}, ValueError, r"in \[0, 4\) or 255 \(ignored\), got 9"),
        ({"target": torch.zeros(H, W)}, TypeError, "must be integers"),
        ({"target": fa.universal.Remove(4)}, ValueError, r"`label` must be in \[0, 4\), got 4"),
        ({"tile": (0, 3)}, ValueError, "`tile` must be"),
        ({"tile": (2, 2), "ball": fa.L2(1.0)}, ValueError, "`tile` goes with Linf"),
        ({"tile": (H, W + 1)}, ValueError, r"`tile` must fit into a sample \(3, 8, 10\)"),
        (
            {"tile": (2, 2), "init": fa.Perturbation(torch.zeros(C, 2, 2).double(), BALL)},
            ValueError,
            "`init` must be placed like the tile",
        ),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"batches": 0}, ValueError, "`batches` must be at least 1"),
        ({"confidence": 1.5}, ValueError, "`confidence` must be in"),
        ({"loader": []}, ValueError, "`loader` must give batches"),
        (
            {"loader": torch.zeros(2, C, H, W)},
            TypeError,
            "`loader` must give batches, got a tensor",
        ),
        ({"loader": iter([scenes()])}, ValueError, "an iterator that the first epoch used up"),
        ({"loader": [scenes() + 1], "ball": fa.Linf(0.1)}, ValueError, "within the ball's bounds"),
        ({"model": nn.Flatten()}, ValueError, r"`model\(x\)` must be \(N, classes, H, W\)"),
        ({"model": lambda x: x.detach()}, ValueError, "must be differentiable"),
        ({"model": lambda x: x / 0}, ValueError, "must be numbers"),
        ({"model": lambda x: x.sqrt() - x.sqrt() + x, "loader": [scenes() * 0]}, ValueError, "NaN"),
    ],
)
def test_mistakes(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"ball": BALL, "model": net().eval(), "loader": [scenes()]}
    given |= {"target": checkerboard()} | change
    with pytest.raises(error, match=message):
        segmentation(given.pop("ball"), given.pop("model"), given.pop("loader"), **given)
    with pytest.raises(ValueError, match="`weight` must be in"):
        fa.universal.Remove(1, 1.5)


def test_gradient_takes_segmentation_too() -> None:
    """Untargeted and with every pixel in it, both ascend the mean cross-entropy."""
    model, x = net().eval(), scenes()
    y = checkerboard().expand(N, H, W)
    attack = fa.bim(BALL, RADIUS / 10)
    other = fa.universal.gradient(attack, model, [(x, y)], 20)
    mine = segmentation(BALL, model, [(x, y)], steps=20, confidence=None)
    torch.testing.assert_close(mine.delta, other.delta)
