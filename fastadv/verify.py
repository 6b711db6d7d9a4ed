"""The verdict on adversarial examples, by the caller's own model."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastadv import _checks, ops
from fastadv.balls import Ball, require_ball
from fastadv.confusion import Confusion, confusion
from fastadv.model import Model, crafting
from fastadv.objectives import ObjectiveLike, as_objective, cross_entropy
from fastadv.problem import Problem
from fastadv.reference import box, compute_dtype, flat


@dataclass(frozen=True)
class Verdict:
    """fooled: (N,) bool. distance: (N,) float64, ||x_adv - x||. feasible: (N,) bool.

    confusion: of segmentation, at every feasible x_adv: with its pixel accuracy and mIoU.
    """

    fooled: Tensor
    distance: Tensor
    feasible: Tensor
    confusion: Confusion | None = None

    @property
    def robust_accuracy(self) -> float:
        """The share that no feasible x_adv fooled: one outside the ball proves nothing."""
        return 1 - float((self.fooled & self.feasible).double().mean())


def verify(
    model: Model,
    x: Tensor,  # (N, *shape)
    x_adv: Tensor,  # (N, *shape)
    y: Tensor,
    ball: Ball,
    *,
    target: Tensor | None = None,
    radius: float | Tensor | None = None,  # () or (N,)
    objective: ObjectiveLike = cross_entropy,
    tolerance: float = 0.0,
) -> Verdict:
    """Scores x_adv in float32 with `model` in eval mode, and measures it in float64.

    Feasible is ||x_adv - x|| <= radius * (1 + tolerance) and x_adv within the bounds. Other
    libraries' examples exceed their radius by roundings: give them 1e-5.
    Raises where shapes do not match or the model gives NaN.
    """
    require_ball(ball)
    _checks.data(x, "x")
    _checks.like(x_adv, "x_adv", x, "x")
    wide = compute_dtype(x.dtype)
    distance = ball.norm(x_adv.double() - x.double())
    limit = ops.per_sample(ball.radius if radius is None else radius, x.double(), "radius")
    feasible = distance <= limit * (1 + tolerance)
    bounds = ball.bounds_for(x)
    if bounds is not None:
        lower, upper = box(bounds, x_adv.to(wide))
        room = tolerance * (upper - lower)
        inside = (x_adv.to(wide) >= lower - room) & (x_adv.to(wide) <= upper + room)
        feasible = feasible & flat(inside).all(1)
    if not len(x):
        return Verdict(torch.zeros_like(feasible), distance, feasible)
    judge = _in_float32(model) if wide != x.dtype else model
    with torch.no_grad(), crafting(judge, "eval"):
        problem = Problem(judge, as_objective(objective), ball, x, limit, y, target)
        _, fooled, logits = problem.judge(x_adv.detach().to(wide))
    problem.raise_if_nan()
    assert problem.y is not None
    counts = confusion(problem.objective, logits, problem.y, feasible)
    return Verdict(fooled, distance, feasible, counts)


def _in_float32(model: Model) -> Model:
    """The model itself, or a float32 copy of one whose parameters are in half precision."""
    if isinstance(model, nn.Module):
        halves = (torch.float16, torch.bfloat16)
        if any(p.dtype in halves for p in model.parameters()):
            return copy.deepcopy(model).float()
    return model
