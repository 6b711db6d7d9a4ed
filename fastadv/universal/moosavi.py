"""Algorithm 1 of *Universal adversarial perturbations* (Moosavi-Dezfooli et al. 1610.08401)."""

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
from fastadv.universal.batches import Batch
from fastadv.universal.passes import Delta, Inner, Options, Pass, Passes, inner_of, seed_for, solve
from fastadv.universal.rates import predictions


@torch.inference_mode(False)  # where no gradient could be taken
def moosavi(
    ball: Ball,
    model: Model,
    loader: Iterable[Batch],
    *,
    fooling_rate: float = 0.8,
    passes: int = 10,
    inner: DeepFool | Attack | None = None,
    count: str = "fooled",
    block: int | None = None,
    validation: Iterable[Batch] | None = None,
    init: Perturbation | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    on_pass: Callable[[Pass], None] | None = None,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """For each x that v does not fool yet: v <- P(v + dr), dr the smallest step that takes x + v
    across the boundary; pass after pass, until `fooling_rate` or `passes` is reached.

    What comes out is what one sample at a time gives, in the order of the loader. A block of
    samples is scored under the present v at once, and only the part before the first that is not
    fooled counts; so large batches of the loader cost nothing but memory.

    ball: where v is projected to, in linf, l2 or l1. Its bounds are x + v's: `fa.Linf(r, None)`
    clips no image, as published; with bounds every point is clamp(x + v), as `apply` gives it.
    inner: what finds dr; None is DeepFool's l2 of 10 steps. An Attack serves too, its ball around
    x + v. Where it does not find its way across, v stays. Its bounds become the ball's.
    count: "fooled", a prediction other than on x, as published; "wrong", one other than y.
    block: samples scored at once; None follows v, about as many as were fooled in a row.
    validation: batches whose rate decides, in place of the loader's, which v is the best, the one
    that is returned, and when to stop.
    init: goes on from there. state: a file, written after each pass; a run that finds it goes on
    from it, to the same result if the loader is made and seeded as it was.
    progress: a bar with the share of samples fooled as they are met, and the updates of v.
    on_pass: called with each Pass. generator: for an inner attack's random starts, one draw.

    Being sequential, it sends nothing under torch.distributed: each rank that calls it runs the
    whole, to the same v from the same data, and a loader that shards the data raises.

    Raises TypeError or ValueError for a loader without batches, a `state` of another run, and where
    DeepFool or the attack would on a batch.
    """
    if block is not None and block < 1:
        raise ValueError(f"`block` must be at least 1, got {block}")
    options = Options(fooling_rate, passes, count, validation, state, progress, on_pass)
    delta = Delta(ball, init)
    solver = inner_of(DeepFool(steps=10) if inner is None else inner, ball)
    delta.seed = seed_for(solver, generator)
    run = Passes("moosavi", model, loader, delta, options, {"inner": solver})
    return run.run(_Speculation(model, solver, block).visit)


class _Speculation:
    """One sample after the other, scored ahead a block at a time."""

    def __init__(self, model: Model, inner: Inner, block: int | None) -> None:
        self.model, self.inner, self.block = model, inner, block
        self.ahead = 1 if block is None else block

    def visit(self, delta: Delta, x: Tensor, y: Tensor) -> tuple[int, int]:
        """Updates v along a batch: (samples fooled when they were met, updates)."""
        k, fooled, updates = 0, 0, 0
        while k < len(x):
            run, left = self._score(delta, x[k : k + self.ahead], y[k : k + self.ahead])
            fooled, k = fooled + run, k + run
            if left:
                dr, found = solve(self.inner, self.model, delta, x[k : k + 1], y[k : k + 1])
                k += 1
                if not bool(found):
                    pass
                elif bool(dr.any()):
                    delta.add_(dr)
                    updates += 1
                else:  # it was not scored
                    fooled, run, left = fooled + 1, run + 1, False
            self._adapt(run, left)
        return fooled, updates

    def _score(self, delta: Delta, x: Tensor, y: Tensor) -> tuple[int, bool]:
        """How many are fooled before the first that is not, and whether there is one."""
        if len(x) == 1 and isinstance(self.inner, DeepFool):
            return 0, True  # its own first forward tells
        left = (predictions(self.model, delta.at(x)) == y).nonzero()[:, 0]
        return (int(left[0]), True) if len(left) else (len(x), False)

    def _adapt(self, run: int, left: bool) -> None:
        """As many as were fooled in a row: of a longer block the most is scored in vain, and on a
        small net a sample takes as long in a block as alone. Powers of two, so that few sizes have
        to be planned (engine/plan.py)."""
        if self.block is None:
            self.ahead = 1 << max(0, run.bit_length() - 1) if left else 2 * self.ahead
