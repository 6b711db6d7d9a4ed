"""fa.deepfool: closed forms on linear models, the authors' loop, batches, and clear errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import LinearPair, image_net, seeded, smooth_net
from torch import Tensor, nn

import fastadv as fa

W = torch.tensor([0.5, -2.0, 0.0, 1.0, -0.25, 0.0], dtype=torch.float64)
NUDGE = 1e-4


def affine(classes: int = 5) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Linear(6, classes).double()


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_closed_form_on_an_affine_binary_model(norm: str, dual: int) -> None:
    x = torch.randn(9, 6, generator=seeded(1)).double()
    z = x @ W
    got = fa.deepfool(norm, bounds=None).run(LinearPair(W), x)
    length = z.abs() / W.norm(dual) + NUDGE
    along = W / W.norm() if norm == "l2" else W.sign()
    expected = x - 1.02 * (z.sign() * length)[:, None] * along
    torch.testing.assert_close(got.x_adv, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(got.distance, 1.02 * length, atol=1e-12, rtol=0)
    assert bool(got.success.all())
    assert got.steps.tolist() == [1] * 9
    assert got.forwards == 18


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_closed_form_on_an_affine_multiclass_model(norm: str, dual: int) -> None:
    model, x = affine(), torch.randn(40, 6, generator=seeded(1)).double()
    got = fa.deepfool(norm, bounds=None, overshoot=1.0).run(model, x)
    with torch.no_grad():
        z, y = model(x), model(x).argmax(1)
    away = z.gather(1, y[:, None]) - z
    size = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight, dual, dim=2)
    nearest = torch.where(size > 0, away / size, math.inf).min(1).values.detach()
    torch.testing.assert_close(got.distance, nearest + NUDGE, atol=1e-12, rtol=0)
    assert bool(got.success.all())


def published(model: nn.Module, x: Tensor, steps: int, classes: int) -> tuple[Tensor, int]:
    """deepfool.py of the authors' universal perturbations, one sample, no box, line by line."""
    order = model(x[None])[0].argsort(descending=True)[:classes]
    r, point = torch.zeros_like(x), x
    for k in range(steps + 1):
        leaf = point.clone().requires_grad_()
        f = model(leaf[None])[0]
        if int(f.argmax()) != int(order[0]) or k == steps:
            break
        grads = [torch.autograd.grad(f[c], leaf, retain_graph=True)[0] for c in order]
        best, w_best = math.inf, r
        for c in range(1, len(order)):
            w = grads[c] - grads[0]
            distance = float((f[order[c]] - f[order[0]]).detach().abs() / w.norm())
            if distance < best:
                best, w_best = distance, w
        r = r + (best + 1e-4) * w_best / w_best.norm()
        point = x + 1.02 * r
    return point.detach(), k


@pytest.mark.parametrize("classes", [2, 3])
def test_the_authors_loop(classes: int) -> None:
    x = torch.randn(20, 6, generator=seeded(1)).double()
    model = smooth_net()
    got = fa.deepfool(bounds=None, classes=classes).run(model, x)
    for k in range(20):
        point, steps = published(model, x[k], 50, classes)
        torch.testing.assert_close(got.x_adv[k], point, atol=1e-10, rtol=0)
        assert int(got.steps[k]) == steps
    assert int(got.steps.max()) > 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_split_does_not_matter(norm: str, vectors: tuple[Tensor, Tensor]) -> None:
    x = torch.cat([vectors[0]] * 2).clamp(0, 1)  # more than one vmapped backward takes
    model, attack = smooth_net(), fa.deepfool(norm)
    whole = attack.run(model, x)
    for size in (1, 5):
        parts = [attack.run(model, part) for part in x.split(size)]
        joined = torch.cat([part.x_adv for part in parts])
        torch.testing.assert_close(joined, whole.x_adv, atol=1e-12, rtol=0)
        assert torch.equal(torch.cat([part.steps for part in parts]), whole.steps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_box_holds_and_a_smaller_ball_fools_nobody(dtype: torch.dtype) -> None:
    net = image_net().eval()
    model = lambda v: net(v.float())  # noqa: E731
    x = torch.rand(12, 3, 6, 6, generator=seeded(1)).to(dtype)
    for norm in ("l2", "linf"):
        got = fa.deepfool(norm).run(model, x)
        assert float(got.x_adv.min()) >= 0
        assert float(got.x_adv.max()) <= 1
        assert got.x_adv.dtype == dtype
        fooled = model(got.x_adv).argmax(1) != model(x).argmax(1)
        assert torch.equal(fooled, got.success)
        assert float(got.success.double().mean()) > 0.9
        assert bool((got.distance > 0).all())
    pixel = fa.deepfool("linf").run(model, x).distance.median()
    pgd = fa.pgd(fa.Linf(float(pixel) / 2), steps=20).run(model, x, generator=seeded(2))
    assert float(pgd.success.double().mean()) < 0.5  # it found about the smallest


def test_labels_and_steps(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    wrong = model(x).argmax(1) != y
    got = fa.deepfool().run(model, x, y)
    assert bool(wrong.any())
    assert torch.equal(got.x_adv[wrong], x[wrong])
    assert not got.distance[wrong].any()
    assert bool(got.success.all())
    none = fa.deepfool(steps=0).run(model, x)
    assert torch.equal(none.x_adv, x)
    assert not none.success.any()
    assert torch.equal(fa.deepfool()(model, x), fa.deepfool().run(model, x).x_adv)
    empty = fa.deepfool().run(model, x[:0])
    assert empty.x_adv.shape == (0, 6)
    assert empty.success.shape == empty.distance.shape == empty.steps.shape == (0,)


def test_no_way_across() -> None:
    got = fa.deepfool().run(LinearPair(torch.zeros(3)), torch.rand(2, 3))
    assert not got.success.any()
    assert not got.distance.any()


def test_a_backward_that_vmap_cannot_run(vectors: tuple[Tensor, Tensor]) -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, v: Tensor) -> Tensor:
            return v.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return grad * float(grad.sum().item() * 0 + 1)  # .item() does not vmap

    x, model = vectors[0], smooth_net()
    got = fa.deepfool().run(lambda v: model(Own.apply(v)), x[:3])
    torch.testing.assert_close(got.x_adv, fa.deepfool()(model, x[:3]), atol=1e-12, rtol=0)


def test_errors(vectors: tuple[Tensor, Tensor]) -> None:
    x, y = vectors
    model = smooth_net()
    for options, words in (
        ({"norm": "l1"}, "`norm` must be one of ('linf', 'l2'), got 'l1'"),
        ({"steps": -1}, "`steps` must be a whole number from 0, got -1"),
        ({"classes": 1}, "`classes` must be a whole number from 2, got 1"),
        ({"overshoot": 0.5}, "`overshoot` must be finite and at least 1, got 0.5"),
        ({"mode": "test"}, "`mode` must be one of"),
        ({"bounds": (1, 0)}, "`bounds` must have lower < upper"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            fa.deepfool(**options)
    for run, words in (
        (lambda: fa.deepfool()(model, x + 1), "`x` must lie within the ball's bounds"),
        (lambda: fa.deepfool()(model, x, y + 9), "`y` must be in [0, 3)"),
        (lambda: fa.deepfool()(lambda v: model(v)[:, 0], x), "`model(x)` must be (12, classes)"),
        (lambda: fa.deepfool()(lambda v: model(v).detach(), x), "differentiable"),
        (lambda: fa.deepfool()(lambda v: model(v) * math.nan, x), "NaN"),
        (lambda: fa.deepfool()(lambda v: torch.zeros(12, 2).requires_grad_(), x), "does not dep"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            run()


def test_it_is_a_value() -> None:
    assert fa.deepfool() == fa.DeepFool("l2", 50)
    assert hash(fa.deepfool("linf", bounds=[0, 1])) == hash(fa.deepfool("linf"))
    assert "overshoot=1.02" in repr(fa.deepfool())
