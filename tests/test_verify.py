"""The verdict: exact distances, feasibility, and fooling as the caller's own model sees it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import image_net, seeded, smooth_net
from torch import Tensor, nn

import fastadv as fa


def half(x: Tensor) -> Tensor:
    """Class 1 from a mean of .5."""
    z = x.flatten(1).mean(1) - 0.5
    return torch.stack([-z, z], 1)


def test_feasible_is_exact() -> None:
    x = torch.full((4, 1), 0.5)
    r = 0.25
    ends = torch.tensor([[0.75], [0.25], [0.75], [0.25]])
    ends[2] = torch.nextafter(ends[2], torch.tensor([2.0]))
    ends[3] = torch.nextafter(ends[3], torch.tensor([-2.0]))
    y = torch.zeros(4, dtype=torch.long)
    for ball in (fa.Linf(r), fa.L2(r), fa.L1(r)):
        verdict = fa.verify(half, x, ends, y, ball)
        assert verdict.feasible.tolist() == [True, True, False, False]
        assert verdict.distance.dtype == torch.float64
        assert verdict.distance.tolist() == (ends.double() - x.double()).abs()[:, 0].tolist()
        assert fa.verify(half, x, ends, y, ball, tolerance=1e-5).feasible.all()
    radii = torch.tensor([0.3, 0.2, 0.3, 0.25])
    got = fa.verify(half, x, ends, y, fa.Linf(9.0), radius=radii).feasible
    assert got.tolist() == [True, False, True, False]


def test_the_box_counts() -> None:
    x, x_adv = torch.tensor([[0.1, 0.9]] * 3), torch.tensor([[0.0, 1.0], [-1e-7, 1], [0, 1 + 2e-7]])
    y = torch.zeros(3, dtype=torch.long)
    assert fa.verify(half, x, x_adv, y, fa.Linf(0.5)).feasible.tolist() == [True, False, False]
    assert fa.verify(half, x, x_adv, y, fa.Linf(0.5, None)).feasible.all()
    assert fa.verify(half, x, x_adv, y, fa.Linf(0.5), tolerance=1e-5).feasible.all()
    each = fa.Linf(0.5, ((0.0, 0.0), (0.5, 0.95)))
    assert not fa.verify(half, x, x_adv, y, each).feasible.any()


def test_robust_accuracy_takes_only_feasible_examples() -> None:
    x = torch.full((4, 2), 0.45)
    x_adv = torch.tensor([[0.45, 0.45], [0.6, 0.6], [0.95, 0.95], [0.5, 0.6]])
    verdict = fa.verify(half, x, x_adv, torch.zeros(4, dtype=torch.long), fa.Linf(0.2))
    assert verdict.fooled.tolist() == [False, True, True, True]
    assert verdict.feasible.tolist() == [True, True, False, True]
    assert verdict.robust_accuracy == 0.5


def test_targets_and_other_objectives() -> None:
    x = torch.tensor([[0.4], [0.6]])
    y, target = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert fa.verify(half, x, x, y, fa.Linf(1), target=target).fooled.tolist() == [False, True]
    labels = torch.tensor([[1.0], [1.0]])
    got = fa.verify(lambda v: v - 0.5, x, x, labels, fa.Linf(1), objective=fa.binary_cross_entropy)
    assert got.fooled.tolist() == [True, False]


def test_eval_mode_and_nothing_changed(images: tuple[Tensor, Tensor]) -> None:
    model = image_net().train()
    x, y = images
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (fa.verify(model, x, x, y, fa.Linf(0.1)).fooled for _ in range(2))
    assert torch.equal(first, second)  # dropout is off
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with torch.no_grad():
        expected = model.eval()(x).argmax(1) != y
    assert torch.equal(first, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    x = torch.rand(64, 6, generator=seeded(1)).to(dtype)
    model = smooth_net(torch.float32)
    y = model(x.float()).argmax(1)
    low = smooth_net(torch.float32).to(dtype)
    seen = []
    low[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    got = fa.verify(low, x, x, y, fa.Linf(0.1))
    assert seen == [torch.float32]
    assert next(low.parameters()).dtype == dtype
    wide = smooth_net(torch.float32).to(dtype).float()
    assert torch.equal(got.fooled, wide(x.float()).argmax(1) != y)
    assert torch.equal(fa.verify(model, x, x, y, fa.Linf(0.1)).fooled, torch.zeros(64).bool())


def test_normalized_models() -> None:
    inner = nn.Identity()
    model = fa.normalized(inner, [0.5, 0.25], [0.5, 0.125])
    x = torch.rand(3, 2, 4, 4, generator=seeded(2))
    got, means, stds = model(x), torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.125])
    expected = (x - means[:, None, None]) / stds[:, None, None]
    torch.testing.assert_close(got, expected)
    assert model(x.double()).dtype == torch.float64
    torch.testing.assert_close(fa.normalized(inner, [0.5], [0.5])(x), (x - 0.5) * 2)


def test_empty_and_numbers() -> None:
    x = torch.rand(0, 3)
    got = fa.verify(half, x, x, torch.zeros(0, dtype=torch.long), fa.L2(1.0))
    assert got.fooled.shape == got.feasible.shape == got.distance.shape == (0,)
    x = torch.rand(5, generator=seeded(3))
    model = lambda v: torch.stack([v, 1 - v], 1)  # noqa: E731
    got = fa.verify(model, x, x + 0.1, torch.zeros(5, dtype=torch.long), fa.L1(0.2, None))
    torch.testing.assert_close(got.distance, torch.full((5,), 0.1).double(), atol=1e-7, rtol=0)
    assert math.isclose(got.robust_accuracy, 1 - float((x + 0.1 < 0.5).double().mean()))
