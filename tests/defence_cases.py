"""Perturbations, a classifier and images for the tests of fa.defence."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import seeded
from torch import Tensor, nn

import fastadv as fa

BALLS = {"linf": fa.Linf(0.2), "l2": fa.L2(1.5), "l1": fa.L1(4.0)}


def patterns(
    count: int, ball: fa.Ball = BALLS["linf"], dtype: torch.dtype = torch.float32
) -> list[fa.Perturbation]:
    """Random ones of shape (3, 6, 6), in the ball."""
    g, free = seeded(1), replace(ball, bounds=None)
    deltas = torch.randn(count, 3, 6, 6, generator=g, dtype=torch.float64).to(dtype)
    return [fa.Perturbation(d, ball) for d in free.project(deltas, torch.zeros_like(deltas))]


def planes() -> tuple[nn.Module, list[Tensor], fa.Perturbation]:
    """A classifier of light and dark images, the images, and a delta that makes all light."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]) / 8)
        model[1].bias.copy_(torch.tensor([4.0, -4.0]))
    x = torch.rand(60, 1, 2, 2, generator=seeded(3)) * 0.06 + 0.35
    x[::2] += 0.24
    x = nn.functional.interpolate(x, size=(8, 8), mode="bilinear")
    edge = torch.zeros(1, 8, 8)
    edge[:, ::2, ::2] = 0.6  # what no such smooth image has
    return model, list(x.split(20)), fa.Perturbation(edge, fa.Linf(0.6))
