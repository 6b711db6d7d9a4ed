"""max over one delta of the mean over i of L(f(x_i + delta), y_i), by stochastic gradient ascent.

The update of universal adversarial training (Shafahi et al. 1811.11304, algorithm 2), theta fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from fastadv.universal.batches import Batch, require_loader, require_some, unpack
from fastadv.universal.penalty import Penalty


@torch.inference_mode(False)  # where no gradient could be taken
def gradient(
    attack: Attack,
    model: Model,
    loader: Iterable[Batch],
    epochs: int = 1,
    *,
    loss_cap: float | None = None,
    target: int | None = None,
    classes: Sequence[int] | None = None,
    penalty: Penalty | None = None,
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
    classes: only these are to be fooled; samples of any other y are to keep their class, and their
    loss is descended (class-discriminative: Zhang et al. 2010.03300).
    penalty: a norm of delta's in the objective; goes with the rule Gradient, whose steps it follows
    with its own, before the ball's projection.
    signs: sums the signs of the samples' gradients in place of the gradients.
    init: goes on from there. progress: a bar with the share of inputs fooled so far.

    The gradient is taken at clamp(x + delta) and passes the clamp unchanged: a pixel at its bound
    in one input still votes for where delta goes in the others.

    Raises ValueError for a loader without batches, a penalty with another rule, classes with a
    target or without class labels, and where an attack would on a batch.
    """
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1, got {epochs}")
    if classes is not None and target is not None:
        raise ValueError("`classes` are to lose their own class: give no `target` with them")
    if target is not None and (isinstance(target, bool) or not isinstance(target, Integral)):
        got = type(target).__name__
        raise TypeError(f"`target` must be one class for all inputs, a whole number, got {got}")
    require_loader(loader)
    ascent = Ascent(attack, init, signs, generator, penalty)
    for epoch in range(epochs):
        bar = tqdm(loader, disable=not progress, desc=f"universal {epoch + 1}/{epochs}")
        seen, fooled = 0, 0
        for batch in bar:
            x, y = unpack(batch)
            problem = _problem(attack, model, x, y, target)
            with torch.no_grad(), crafting(model, attack.mode):
                loss, grad, hits = problem.gradient(ascent.apply(x))
            problem.raise_if_nan()
            weights = None if classes is None else _signs(problem, classes, loss)
            if loss_cap is not None:
                counts = loss <= loss_cap
                weights = counts if weights is None else weights * counts
            ascent.step(grad, weights)
            seen, fooled = seen + len(x), fooled + int(hits.sum())
            bar.set_postfix(fooled=f"{fooled / max(seen, 1):.3f}", refresh=False)
        require_some(seen, again=epoch > 0)
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


def _signs(problem: Problem, classes: Sequence[int], loss: Tensor) -> Tensor:  # (N,)
    """1 for the samples to fool, -1 for those to keep."""
    y = problem.y
    if y is None or y.dim() != 1 or y.is_floating_point() or len(classes) == 0:
        raise ValueError(
            f"`classes` must be one or more of an objective's class labels, got {classes}"
        )
    chosen = torch.isin(y, torch.tensor(list(classes), device=y.device))
    return torch.where(chosen, 1.0, -1.0).to(loss.dtype)
