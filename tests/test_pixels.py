"""Segmentation: objectives of maps, what counts, what fooled means, and attacks on 1x1 models."""

from __future__ import annotations

import pytest
import torch
from conftest import seeded
from tolerance import assert_in_ball
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from fastadv.objectives import Objective

PIXELWISE = [fa.cross_entropy, fa.margin, fa.dlr]
N, C, H, W = 4, 5, 6, 7
SHAPE = (N, C, H, W)


def maps(dtype: torch.dtype = torch.float64, void: int = 255) -> tuple[Tensor, Tensor]:
    """Logits (N, C, H, W), and y (N, H, W) with void pixels; of the last sample all."""
    g = seeded(0)
    z = 3 * torch.randn(SHAPE, generator=g, dtype=torch.float64)
    y = torch.randint(0, C, (N, H, W), generator=g)
    y[torch.rand(N, H, W, generator=g) < 0.3] = void
    y[-1] = void
    return z.to(dtype), y


def scenes() -> tuple[nn.Module, Tensor, Tensor]:
    """A 1x1 convolution, x and its own prediction: every pixel is a linear model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Conv2d(3, C, 1).double()
        net.bias.data = (
            -net.weight.data[:, :, 0, 0].sum(1) / 2
        )  # every class is the likeliest somewhere
    x = torch.rand(N, 3, H, W, generator=seeded(2), dtype=torch.float64)
    return net, x, net(x).argmax(1)


def test_cross_entropy_is_torchs() -> None:
    z, y = maps()
    leaf = z.clone().requires_grad_()
    loss = fa.cross_entropy(leaf, y)
    each = functional.cross_entropy(z, y, ignore_index=255, reduction="none")
    count = (y != 255).sum((1, 2))
    torch.testing.assert_close(loss[:-1], each.sum((1, 2))[:-1] / count[:-1])
    assert loss[-1] == 0
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    torchs = sum(
        functional.cross_entropy(leaf[i : i + 1], y[i : i + 1], ignore_index=255)
        for i in range(N - 1)
    )
    torch.testing.assert_close(grad, torch.autograd.grad(torchs, leaf)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", PIXELWISE, ids=str)
def test_the_head_is_the_objective(
    objective: Objective, targeted: bool, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    z, y = maps(dtype)
    z = z.contiguous(memory_format=layout)
    target = torch.randint(0, C, y.shape, generator=seeded(3))
    target[:, 0] = 255
    loss, grad, fooled = objective.head(z, *objective.prepare(z, y, target if targeted else None))
    leaf = z.clone().requires_grad_()
    plain = objective.targeted(leaf, target, y) if targeted else objective(leaf, y)
    (expected,) = torch.autograd.grad(plain.sum(), leaf)
    assert loss.dtype == plain.dtype
    assert grad.dtype == dtype
    assert grad.shape == SHAPE
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        grad, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    void = (target if targeted else y) == 255
    assert not grad.movedim(1, -1)[void].any()
    labels = target if targeted else y
    assert torch.equal(fooled, objective.fooled(objective.prediction(z), labels, targeted))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("targeted", [False, True])
def test_kl_is_the_mean_over_all_pixels(targeted: bool, dtype: torch.dtype) -> None:
    z, _ = maps(dtype)
    g = seeded(4)
    p, q = (torch.randn(SHAPE, generator=g, dtype=torch.float64).softmax(1) for _ in range(2))
    target = q if targeted else None
    loss, grad, fooled = fa.kl.head(z, *fa.kl.prepare(z, p, target))
    leaf = z.double().requires_grad_()
    each = functional.kl_div(leaf.log_softmax(1), q if targeted else p, reduction="none").sum(1)
    expected = (-each if targeted else each).mean((1, 2))
    (by_torch,) = torch.autograd.grad(expected.sum(), leaf)
    wide = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), by_torch, rtol=wide, atol=1e-6)
    plain = fa.kl.targeted(z, q, p) if targeted else fa.kl(z, p)
    torch.testing.assert_close(plain, loss, rtol=1e-5, atol=1e-6)
    hits = (z.argmax(1) == q.argmax(1)) if targeted else (z.argmax(1) != p.argmax(1))
    assert torch.equal(fooled, hits.flatten(1).double().mean(1) >= 0.5)
    assert fa.kl.predict(z).shape == SHAPE


def test_kl_attacks_maps() -> None:
    net, x, y = scenes()
    clean = net(x).softmax(1)
    attack = fa.pgd(fa.Linf(0.2), objective=fa.kl)
    result = attack.run(net, x, clean, generator=seeded(6))
    same = attack.run(net, x, generator=seeded(6))  # without y the prediction
    assert torch.equal(result.x_adv, same.x_adv)
    noise = fa.Linf(0.2).sample(x, 7)
    assert bool((fa.kl(net(result.x_adv), clean) > 2 * fa.kl(net(noise), clean)).all())
    verdict = fa.verify(net, x, result.x_adv, clean, attack.ball, objective=fa.kl)
    assert torch.equal(verdict.fooled, result.success)
    for wrong, words in (
        (clean[:, :, 1:], r"`y` must be \(4, 5, 6, 7\)"), (2 * clean, "a sum of 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            attack(net, x, wrong)
    with pytest.raises(TypeError, match="must be probabilities"):
        attack(net, x, y)


def test_classes_of_kl_are_never_void() -> None:
    z = torch.zeros(1, 256, 1, 2)
    z[:, 255] = 1
    p = torch.zeros(1, 256, 1, 2)
    p[:, 255] = 1
    for there, goal in ((z, p), (-z, p), (z[..., 0, 0], p[..., 0, 0])):
        _, _, fooled = fa.kl.head(there, *fa.kl.prepare(there, goal))
        assert fooled.tolist() == [there is not z and there.dim() == 4]


@pytest.mark.parametrize("void", [-100, 0, C - 1, 255, 300])
def test_any_ignore_index(void: int) -> None:
    z, y = maps(void=void)
    objective = fa.pixels(ignore_index=void)
    each = functional.cross_entropy(z, y, ignore_index=void, reduction="none").sum((1, 2))
    expected = each / (y != void).sum((1, 2)).clamp(min=1)
    torch.testing.assert_close(objective(z, y), expected)
    torch.testing.assert_close(objective.head(z, *objective.prepare(z, y))[0], expected)


def test_small_label_types() -> None:
    z, y = maps(void=4)
    small = y.to(torch.uint8)
    for objective in (fa.cross_entropy, fa.pixels(ignore_index=4), fa.pixels(ignore_index=-252)):
        assert torch.equal(objective(z, small), objective(z, y))


@pytest.mark.parametrize("targeted", [False, True])
def test_fooled_is_a_share_of_the_pixels_that_count(targeted: bool) -> None:
    z = torch.zeros(1, 2, 2, 3)
    z[:, 1] = 1  # says 1 everywhere
    hit, miss = (1, 0) if targeted else (0, 1)
    y = torch.tensor([[[hit, hit, hit], [miss, 255, 255]]])
    for share, expected in ((0.25, True), (0.75, True), (0.76, False), (1.0, False)):
        objective = fa.pixels(share=share)
        goal = y if targeted else None
        assert objective.head(z, *objective.prepare(z, y, goal))[2].tolist() == [expected]
        assert objective.fooled(objective.prediction(z), y, targeted).tolist() == [expected]
    nothing = torch.full_like(y, 255)
    assert not fa.cross_entropy.fooled(z.argmax(1), nothing, targeted)


def test_pixels_is_a_value() -> None:
    assert fa.pixels(fa.margin, share=0.8) == fa.pixels(fa.margin, share=0.8)
    assert fa.pixels(share=0.8) != fa.pixels(share=0.7)
    assert str(fa.pixels(ignore_index=11)) == "cross_entropy(ignore_index=11, share=0.5)"
    with pytest.raises(ValueError, match="`share` of the pixels must be in"):
        fa.pixels(share=0)
    for other in (fa.kl, fa.binary_cross_entropy, lambda z, y: z.sum((1, 2, 3))):
        with pytest.raises(ValueError, match="must be cross_entropy, margin or dlr"):
            fa.pixels(other)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.zeros(N).long(), ValueError, r"`y` must be \(4, 6, 7\) to go with .*got \(4,\)"),
        (torch.zeros(N, 1, H, W).long(), ValueError, r"got \(4, 1, 6, 7\)"),
        (torch.zeros(N, H, W), TypeError, "must be integers"),
        (torch.full((N, H, W), 254), ValueError, r"in \[0, 5\) or 255 \(ignored\), got 254 for"),
        (torch.full((N, H, W), -1), ValueError, "got -1 for sample 0"),
    ],
)
def test_labels_that_do_not_go(y: Tensor, error: type[Exception], message: str) -> None:
    net, x, _ = scenes()
    with pytest.raises(error, match=message):
        fa.pgd(fa.Linf(0.1))(net, x, y)


def test_a_binary_linear_model_by_its_closed_form() -> None:
    """Two classes: every pixel goes against its own margin's weights, void ones nowhere."""
    net = nn.Conv2d(3, 2, 1).double()
    x = torch.rand(N, 3, H, W, generator=seeded(4), dtype=torch.float64)
    y = torch.randint(0, 2, (N, H, W), generator=seeded(5))
    y[:, 2] = 255
    w = (net.weight[1] - net.weight[0]).detach()[:, 0, 0]
    sign = torch.where(y == 255, 0, 1 - 2 * y).double()
    expected = x + 0.1 * sign[:, None] * w.sign()[:, None, None]
    for attack in (fa.fgsm(fa.Linf(0.1, None)), fa.bim(fa.Linf(0.1, None), 0.05)):
        torch.testing.assert_close(attack(net, x, y), expected, rtol=0, atol=1e-15)
        assert torch.equal(attack(net, x, y).movedim(1, -1)[y == 255], x.movedim(1, -1)[y == 255])


@pytest.mark.parametrize(
    "attack",
    [
        fa.pgd(fa.Linf(0.2), restarts=2, stop="fooled"), fa.pgd(fa.L2(2.0), objective=fa.margin),
        fa.apgd(fa.Linf(0.2), objective=fa.dlr), fa.mi_fgsm(fa.Linf(0.2)), fa.pgd(fa.L1(8.0)),
        fa.pgd(fa.Linf(0.2), objective=fa.pixels(share=0.9)),
    ],
    ids=str,
)  # fmt: skip
def test_attacks(attack: fa.Attack) -> None:
    net, x, y = scenes()
    y = y.clone()
    y[:, 0] = 255
    before = fa.cross_entropy(net(x), y).mean()
    result = attack.run(net, x, y, generator=seeded(6))
    assert result.success.shape == (N,)
    assert_in_ball(result.x_adv, x, attack.ball.radius, attack.ball.order)
    assert fa.cross_entropy(net(result.x_adv), y).mean() > before
    verdict = fa.verify(net, x, result.x_adv, y, attack.ball, objective=attack.objective)
    assert torch.equal(verdict.fooled, result.success)
    target = torch.full_like(y, 1)
    aimed = attack(net, x, y, target=target, generator=seeded(6))
    assert fa.cross_entropy(net(aimed), target).mean() < fa.cross_entropy(net(x), target).mean()
    assert net.weight.grad is None


def test_without_labels_and_by_a_callable() -> None:
    net, x, y = scenes()
    attack = fa.bim(fa.Linf(0.1), 0.05)
    assert torch.equal(attack(net, x), attack(net, x, y))

    def mean(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(z, y, reduction="none").mean((1, 2))

    own = fa.bim(fa.Linf(0.1), 0.05, objective=mean).run(net, x, y)
    assert torch.equal(own.x_adv, attack(net, x, y))
    assert own.success.shape == (N,)
    with pytest.raises(ValueError, match="one loss a sample"):
        fa.bim(fa.Linf(0.1), 0.05, objective=nn.CrossEntropyLoss(reduction="none"))(net, x, y)


def test_training() -> None:
    net, x, y = scenes()
    y = torch.where(y == 0, 4, y)
    for objective in (fa.cross_entropy, fa.pixels(ignore_index=4)):
        attack = fa.bim(fa.Linf(0.1), 0.05, objective=objective)
        loss = fa.training.Madry(attack)(net, x, y)
        torch.testing.assert_close(loss, objective(net(attack(net, x, y)), y).mean())
        loss.backward()


@pytest.mark.parametrize("objective", PIXELWISE, ids=str)
def test_no_samples(objective: Objective) -> None:
    z, y = maps()
    loss, grad, fooled = objective.head(z[:0], *objective.prepare(z[:0], y[:0]))
    assert (loss.shape, grad.shape, fooled.shape) == ((0,), (0, C, H, W), (0,))
    assert objective(z[:0], y[:0]).shape == (0,)


def test_compiled() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, C, 1)).eval()
    x = torch.rand(N, 3, 16, 16, generator=seeded(2))
    y = net(x).argmax(1)
    attack, fast = fa.bim(fa.Linf(0.1)), fa.compile(net)
    assert_in_ball(attack(fast, x, y), x, 0.1, "linf")
    loss, other = (fa.cross_entropy(net(attack(m, x, y)), y) for m in (net, fast))
    torch.testing.assert_close(loss, other, rtol=1e-2, atol=1e-3)


def test_what_takes_no_maps() -> None:
    net, x, _ = scenes()
    for call in (
        lambda: fa.deepfool()(net, x),
        lambda: fa.universal.moosavi(fa.Linf(0.1), net, [x]),
        lambda: fa.universal.averaged(fa.Linf(0.1), net, [x]),
        lambda: fa.universal.measure(fa.Perturbation(x[0], fa.Linf(1.0)), net, [x]),
    ):
        with pytest.raises(
            ValueError, match=r"got \(4, 5, 6, 7\): maps go with (fa\.pgd|univ.*seg)"
        ):
            call()
    for call in (
        lambda: fa.universal.gradient(fa.bim(fa.Linf(0.1)), net, [x], target=1),
        lambda: fa.pgd(fa.Linf(0.1), objective=fa.binary_cross_entropy)(net, x),
    ):
        with pytest.raises(ValueError, match=r"\(4, 6, 7\)|must be \(N,\), .*got \(4, 5, 6, 7\)"):
            call()
