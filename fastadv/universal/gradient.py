"""max over one delta of the mean over i of L(f(x_i + delta), y_i), by stochastic gradient ascent.

The update of universal adversarial training (Shafahi et al. 1811.11304, algorithm 2), theta fixed.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastadv import _checks, ops
from fastadv.attack import Attack
from fastadv.model import Model, crafting
from fastadv.objectives import as_objective
from fastadv.perturbation import Perturbation
from fastadv.problem import Problem, output
from fastadv.universal.ascent import Ascent

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


@torch.inference_mode(False)  # where no gradient could be taken
def gradient(
    attack: Attack,
    model: Model,
    loader: Iterable[Batch],
    epochs: int = 1,
    *,
    loss_cap: float | None = None,
    target: int | None = None,
    signs: bool = False,
    init: Perturbation | None = None,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """Ascends the mean objective over the batches of `loader`, one step a batch.

    Of the attack it takes the ball, the rule (Steepest, Gradient, Momentum or Adam), the objective,
    the start and the mode; steps and restarts are a single sample's and play no part.

    loader: batches (x, y), or x alone, whose labels are then the model's predictions.
    loss_cap: beta; a sample whose loss exceeds it adds no gradient, so that no few dominate.
    target: a class that delta is to call forth on every input.
    signs: sums the signs of the samples' gradients in place of the gradients.
    init: goes on from there. progress: a bar with the share of inputs fooled so far.

    The gradient is taken at clamp(x + delta) and passes the clamp unchanged: a pixel at its bound
    in one input still votes for where delta goes in the others.

    Raises ValueError for a loader without batches, and where an attack would on a batch.
    """
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1, got {epochs}")
    if target is not None and (isinstance(target, bool) or not isinstance(target, Integral)):
        got = type(target).__name__
        raise TypeError(f"`target` must be one class for all inputs, a whole number, got {got}")
    if isinstance(loader, Tensor):
        raise TypeError("`loader` must give batches, got a tensor: wrap it, as in [x] or [(x, y)]")
    ascent = Ascent(attack, init, signs, generator)
    for epoch in range(epochs):
        bar = tqdm(loader, disable=not progress, desc=f"universal {epoch + 1}/{epochs}")
        seen, fooled = 0, 0
        for batch in bar:
            x, y = _unpack(batch)
            problem = _problem(attack, model, x, y, target)
            with torch.no_grad(), crafting(model, attack.mode):
                loss, grad, hits = problem.gradient(ascent.apply(x))
            problem.raise_if_nan()
            ascent.step(grad, None if loss_cap is None else loss <= loss_cap)
            seen, fooled = seen + len(x), fooled + int(hits.sum())
            bar.set_postfix(fooled=f"{fooled / max(seen, 1):.3f}", refresh=False)
        if not seen:
            used_up = ": is it an iterator that the first epoch used up?" if epoch else ""
            raise ValueError(f"`loader` must give batches in every epoch, got none{used_up}")
    return ascent.perturbation


def _problem(
    attack: Attack, model: Model, x: Tensor, y: Tensor | None, target: int | None
) -> Problem:
    objective = as_objective(attack.objective)
    _checks.data(x, "x")
    radius = ops.per_sample(attack.ball.radius, x, "radius", round_down=True)
    _checks.inputs(x, radius, attack.ball.bounds_for(x))
    goal = None if target is None else torch.full((len(x),), target, device=x.device)
    if y is None and (goal is None or objective.targeted_needs_y):
        with torch.no_grad(), crafting(model, attack.mode):
            y = objective.predict(output(model, x.clone()))
    return Problem(model, objective, attack.ball, x, radius, y, goal)


def _unpack(batch: Batch) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2:
        return batch[0], _checks.labels(batch[1], "y") if len(batch) == 2 else None
    raise TypeError(f"`loader` must give (x, y) or x, got a {type(batch).__name__}")
