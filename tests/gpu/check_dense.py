"""Whole attacks on dense stacks, all steps in one launch, against the plain model's loop."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import seeded
from gpu_plugin import DEVICE
from torch import nn

import fastadv as fa

SIZES = {
    "2": (784, 256, 10),
    "3": (784, 256, 256, 10),
    "wide": (784, 512, 512, 10),
    "odd": (50, 70, 33, 7),
}
ATTACKS = {
    "linf": fa.pgd(fa.Linf(0.1), 0.02, 10, start="zero"),
    "l2": fa.pgd(fa.L2(1.0), 0.2, 10, start="zero"),
    "margin": fa.pgd(fa.Linf(0.1), 0.02, 10, start="zero", objective=fa.margin),
}


def stack(sizes: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(DEVICE).eval()


@pytest.mark.parametrize("samples", [16, 700])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_all_steps_in_one_launch(sizes: str, attack: str, samples: int) -> None:
    """The losses that it reaches are the plain loop's, within what bfloat16 costs."""
    model = stack(SIZES[sizes])
    x = torch.rand(samples, SIZES[sizes][0], generator=seeded(1)).to(DEVICE)
    y = (torch.arange(samples) % SIZES[sizes][-1]).to(DEVICE)
    fast = fa.compile(model, precision="bfloat16")
    found = ATTACKS[attack].run(fast, x, y)
    expected = ATTACKS[attack].run(model, x, y)
    clean = ATTACKS[attack].run(model, x, y, radius=0.0)
    gain = (expected.loss - clean.loss).mean()
    loss = fa.verify(model, x, found.x_adv, y, ATTACKS[attack].ball)
    assert bool(loss.feasible.all())
    assert float((found.loss - expected.loss).mean().abs()) <= 0.05 * float(gain)
    if DEVICE.type == "cuda" and fa.backend().cuda.startswith("triton"):
        assert "launch" in str(fast.report())
