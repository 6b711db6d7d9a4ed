"""A delta that is free under a mask alone: the rest is in test_universal_placed.py."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import image_net, seeded
from tolerance import assert_in_ball

import fastadv as fa

RECTANGLE = torch.zeros(6, 6, dtype=torch.bool)
RECTANGLE[1:4, 2:6] = True


@pytest.mark.parametrize("ball", [fa.Linf(0.1), fa.L2(0.4), fa.L1(1.5)], ids=lambda b: b.order)
@pytest.mark.parametrize(
    "rule", [fa.Steepest(0.05), fa.Momentum(0.05), fa.Gradient(0.5), fa.Adam(0.02)],
    ids=lambda r: type(r).__name__,
)  # fmt: skip
@pytest.mark.parametrize("many", [None, 4])
def test_a_mask_of_a_rectangle_is_an_offset(
    ball: fa.Ball, rule: fa.rules.Rule, many: int | None
) -> None:
    """The same bits, from a random start too; and what is not under it does not move."""
    net, y = image_net().double(), torch.arange(8) % 4
    x = torch.rand(8, 3, 6, 6, generator=seeded(5)).double()
    attack = fa.Attack(ball, rule)
    more = {"epochs": 3, "per_class": many, "loss_cap": 1.5}
    patch = fa.universal.gradient(
        attack, net, [(x, y)], delta_shape=(3, 3, 4), offset=(0, 1, 2), generator=seeded(6), **more
    )
    for mask in (RECTANGLE, RECTANGLE[None], RECTANGLE.expand(3, 6, 6)):
        masked = fa.universal.gradient(
            attack, net, [(x, y)], mask=mask, generator=seeded(6), **more
        )
        assert torch.equal(masked.delta.flatten(), patch.delta.flatten())
        assert torch.equal(masked.whole((3, 6, 6)), patch.whole((3, 6, 6)))
        x_adv = masked.apply(x, y)
        assert torch.equal(x_adv, patch.apply(x, y))
        assert torch.equal(x_adv[..., ~RECTANGLE], x[..., ~RECTANGLE])
        assert masked.norm() <= ball.radius
        assert_in_ball(x_adv, x, ball.radius, ball.order)


def test_a_mask_is_the_callers_own() -> None:
    x, mask = torch.rand(4, 3, 6, 6, generator=seeded(5)).double(), RECTANGLE.clone()
    uap = fa.universal.gradient(fa.pgd(fa.Linf(0.1), 0.02), image_net().double(), [x], mask=mask)
    mask.fill_(True)
    assert torch.equal(uap.place, RECTANGLE)


def test_errors() -> None:
    net, attack = image_net().double(), fa.pgd(fa.Linf(0.1), 0.02)
    x, y = torch.rand(4, 3, 6, 6, generator=seeded(13)).double(), torch.arange(4)
    tile = fa.Perturbation(torch.zeros(3, 2, 2).double(), fa.Linf(0.1), "tiles")
    under = fa.Perturbation(torch.zeros(36).double(), fa.Linf(0.1), RECTANGLE.T)
    cases = [
        (attack, {"mask": RECTANGLE, "delta_shape": (3, 2, 2)}, "give no `delta_shape`"),
        (attack, {"mask": RECTANGLE, "offset": (0, 0, 0)}, "`offset` places a smaller delta"),
        (attack, {"mask": RECTANGLE[:5]}, "`mask` must broadcast to a sample (3, 6, 6), got (5"),
        (attack, {"mask": RECTANGLE.expand(1, 3, 6, 6)}, "`mask` must broadcast to a sample (3, 6"),
        (attack, {"mask": RECTANGLE & False}, "`mask` must be true somewhere, got (6, 6) of False"),
        (attack, {"mask": RECTANGLE, "init": tile}, "`init` must be (36,) like `the delta asked"),
        (attack, {"mask": RECTANGLE, "init": under}, "`init` must be placed like the delta asked"),
    ]  # fmt: skip
    for run, options, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            fa.universal.gradient(run, net, [(x, y)], **options)
    for mask, words in ((RECTANGLE.float(), "bool, got float32"), ([True], "bool, got list")):
        with pytest.raises(TypeError, match=words):
            fa.universal.gradient(attack, net, [(x, y)], mask=mask)
        if isinstance(mask, torch.Tensor):
            with pytest.raises(TypeError, match=words):
                fa.Perturbation(tile.delta, tile.ball, mask)
    words = re.escape("`delta` must fit into a sample (1, 6, 6), got (36,) under a mask of 12")
    with pytest.raises(ValueError, match=words):
        under.apply(x[:, :1])
