"""Perturbations for a defence to learn from: those held back, and sums of those that are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastadv.balls import Ball
from fastadv.perturbation import Perturbation

_TERMS = 1000  # of one sum: opposite perturbations may never reach the bound


def split(
    perturbations: Sequence[Perturbation], unseen: int, seed: int = 0
) -> tuple[list[Perturbation], list[Perturbation]]:
    """(to train on, `unseen` of them held back), shuffled by `seed`.

    A defence is judged by perturbations that it never saw, not only by images. Raises ValueError
    unless 0 < unseen < len(perturbations).
    """
    perturbations = require_perturbations(perturbations)
    if not 0 < unseen < len(perturbations):
        raise ValueError(
            f"`unseen` must leave some of the {len(perturbations)} perturbations, got {unseen}"
        )
    order = torch.randperm(len(perturbations), generator=torch.Generator().manual_seed(seed))
    shuffled = [perturbations[int(k)] for k in order]
    return shuffled[unseen:], shuffled[:unseen]


def synthetic(
    perturbations: Sequence[Perturbation], count: int, seed: int = 0
) -> list[Perturbation]:
    """`count` random positive sums of `perturbations`, of their ball's full radius (Akhtar et al.
    1711.05929).

    Each sum begins at 0 and adds z * delta_j, z uniform in (0, 1] and j any, until its norm is no
    less than the radius; it is then scaled to it, so that it stays a positive combination, and
    projected, so that it is feasible exactly. The k-th depends on `seed` and k alone. No sum is
    dropped for a small l2 norm in the linf ball: perturbations that are at the radius in every
    pixel have the largest that there is, and a sum of different ones has less.

    Raises ValueError unless all have one ball, of a finite radius above 0, and one shape, and
    where they sum to 0.
    """
    perturbations = require_perturbations(perturbations)
    ball = perturbations[0].ball
    if any(p.ball != ball for p in perturbations):
        raise ValueError("`perturbations` must have one ball, got several")
    if not 0 < ball.radius < math.inf:
        raise ValueError(f"`perturbations` must have a radius in (0, inf), got {ball.radius}")
    if count < 0:
        raise ValueError(f"`count` must be at least 0, got {count}")
    first = perturbations[0].delta.detach()
    deltas = torch.stack([p.delta.detach().double().cpu() for p in perturbations])
    free = replace(ball, bounds=None)
    found = []
    for k in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
        delta = _sum(deltas, free, generator).to(first)
        found.append(Perturbation(free.project(delta, torch.zeros_like(delta))[0], ball))
    return found


def _sum(deltas: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """One positive sum of deltas (K, *shape), of the ball's radius: (1, *shape)."""
    total = torch.zeros_like(deltas[:1])
    for _ in range(_TERMS):
        z = 1 - float(torch.rand((), generator=generator, dtype=torch.float64))
        total += z * deltas[int(torch.randint(len(deltas), (), generator=generator))]
        if float(ball.norm(total)) >= ball.radius:
            break
    norm = float(ball.norm(total))
    if not 0 < norm < math.inf:
        raise ValueError(f"`perturbations` must sum to a finite norm above 0, got {norm}")
    return total * (ball.radius / norm)


def require_perturbations(perturbations: object) -> list[Perturbation]:
    """A list of them. Raises TypeError for anything else, ValueError for none and many shapes."""
    if not isinstance(perturbations, Sequence):
        raise TypeError(
            f"`perturbations` must be a sequence of Perturbations, got {perturbations!r}"
        )
    for p in perturbations:
        if not isinstance(p, Perturbation):
            raise TypeError(f"`perturbations` must hold Perturbations, got {type(p).__name__}")
        if p.place is not None or p.per_class:
            raise ValueError(f"`perturbations` must be one delta like a sample each, got {p}")
    shapes = sorted({tuple(p.delta.shape) for p in perturbations})
    if len(shapes) != 1:
        raise ValueError(f"`perturbations` must be some of one shape, got {shapes or 'none'}")
    return list(perturbations)
