"""DeepFool's steps of a whole batch at once: a cheaper relative of Algorithm 1, not the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fastadv.attack import Attack
from fastadv.balls import Ball
from fastadv.deepfool import DeepFool
from fastadv.model import Model
from fastadv.perturbation import Perturbation
from fastadv.reference import rows
from fastadv.universal.batches import Batch
from fastadv.universal.passes import Delta, Options, Pass, Passes, inner_of, seed_for, solve
from fastadv.universal.rates import predictions


@torch.inference_mode(False)  # where no gradient could be taken
def averaged(
    ball: Ball,
    model: Model,
    loader: Iterable[Batch],
    *,
    fooling_rate: float = 0.8,
    passes: int = 10,
    inner: DeepFool | Attack | None = None,
    count: str = "fooled",
    validation: Iterable[Batch] | None = None,
    init: Perturbation | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    on_pass: Callable[[Pass], None] | None = None,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """For each batch: v <- P(v + sum_i dr_i), over the samples that v does not fool yet.

    Every dr_i is found from the same v, so this is not Algorithm 1 (1610.08401): the samples'
    steps add up, which overshoots in large batches, and the loader's batch size shapes the result.
    Arguments and errors are moosavi's.
    """
    options = Options(fooling_rate, passes, count, validation, state, progress, on_pass)
    delta = Delta(ball, init)
    solver = inner_of(DeepFool(steps=10) if inner is None else inner, ball)
    delta.seed = seed_for(solver, generator)

    def visit(delta: Delta, x: Tensor, y: Tensor) -> tuple[int, int]:
        left = (predictions(model, delta.at(x)) == y).nonzero()[:, 0]
        if not len(left):
            return len(x), 0
        dr, found = solve(solver, model, delta, x[left], y[left])
        delta.add_(dr * rows(found, dr))
        return len(x) - len(left), int(found.any())

    return Passes("averaged", model, loader, delta, options, {"inner": solver}).run(visit)
