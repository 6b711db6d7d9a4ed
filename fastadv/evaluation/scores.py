"""What one adversary did to each sample, as the caller's own model sees it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from fastadv.attack import Attack
from fastadv.confusion import Confusion, confusion
from fastadv.labels import ClassLabels
from fastadv.model import Model, crafting
from fastadv.objectives import Objective, ObjectiveLike, as_objective, cross_entropy
from fastadv.perturbation import Perturbation
from fastadv.problem import output
from fastadv.verify import verify

Adversary = Attack | Perturbation


@dataclass(frozen=True)
class Scores:
    """N samples' verdicts, and what they cost. An infeasible x_adv is neither wrong nor changed.

    wrong: (N,) bool, the model errs at x_adv. changed: (N,) bool, its prediction at x_adv is not
    the one at x (fooling, as Moosavi-Dezfooli et al. 1610.08401 count it). success: (N,) bool,
    wrong, or with a target: predicted as the target. feasible: (N,) bool. distance: (N,) float64.
    seconds: to craft. forwards: samples put through the model to craft.
    confusion: segmentation's, with x in place of an infeasible x_adv.
    """

    wrong: Tensor
    changed: Tensor
    success: Tensor
    feasible: Tensor
    distance: Tensor
    seconds: float = 0.0
    forwards: int = 0
    confusion: Confusion | None = None

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of the samples of all parts, in order."""

        def column(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        return cls(
            wrong=column("wrong"),
            changed=column("changed"),
            success=column("success"),
            feasible=column("feasible"),
            distance=column("distance"),
            seconds=sum(part.seconds for part in parts),
            forwards=sum(part.forwards for part in parts),
            confusion=total(part.confusion for part in parts),
        )


@dataclass(frozen=True)
class Clean:
    """What the model makes of x itself: its `prediction`, as y is given, and `wrong` (N,) bool.

    confusion: segmentation's.
    """

    prediction: Tensor
    wrong: Tensor
    confusion: Confusion | None = None


def total(parts: Iterable[Confusion | None]) -> Confusion | None:
    """The sum of those that are there."""
    there = [part for part in parts if part is not None]
    return reduce(Confusion.__add__, there) if there else None


def clean(model: Model, x: Tensor, y: Tensor | None, objective: ObjectiveLike) -> Clean:
    """One forward in eval mode; y=None takes the prediction for the label, and nothing is wrong."""
    kind = as_objective(objective)
    with torch.no_grad(), crafting(model, "eval"):
        logits = output(model, x)
        prediction = kind.predict(logits)
        given = prediction if y is None else y
        kind.check(logits, given)
        labels, _ = kind.prepare(logits, given)
        assert labels is not None
        wrong = kind.fooled(kind.prediction(logits), labels)
    return Clean(prediction, wrong.cpu(), confusion(kind, logits, labels))


def craft(
    adversary: Adversary,
    model: Model,
    x: Tensor,  # (N, *shape)
    y: Tensor,
    *,
    target: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, int, float]:
    """(x_adv, forwards, seconds). A start is a function of (seed, offset + index) alone."""
    began = time.perf_counter()
    if isinstance(adversary, Perturbation):
        x_adv, forwards = adversary.apply(x), 0
    else:
        generator = torch.Generator().manual_seed(seed)
        result = adversary.run(model, x, y, target=target, generator=generator, offset=offset)
        x_adv, forwards = result.x_adv, result.forwards
    if x_adv.is_cuda:
        torch.cuda.synchronize(x_adv.device)
    return x_adv, forwards, time.perf_counter() - began


def score(
    adversary: Adversary,
    model: Model,
    x: Tensor,  # (N, *shape)
    x_adv: Tensor,  # (N, *shape)
    y: Tensor,
    before: Clean,
    *,
    target: Tensor | None = None,
    objective: ObjectiveLike = cross_entropy,
) -> Scores:
    """Re-scores x_adv with `model` (fa.verify): nothing is taken from what the attack reported.

    objective: what judges a Perturbation.
    """
    ball, kind = adversary.ball, objective_of(adversary, objective)

    def fooled(labels: Tensor, goal: Tensor | None = None) -> Scores:
        verdict = verify(model, x, x_adv, labels, ball, target=goal, objective=kind)
        counts = (verdict.fooled & verdict.feasible).cpu()
        matrix = verdict.confusion
        if matrix is not None and isinstance(kind.labels, ClassLabels):
            counted = kind.labels.counted(labels) & ~verdict.feasible[:, None, None]
            matrix += Confusion.of(before.prediction, labels, counted, len(matrix.counts))
        feasible, distance = verdict.feasible.cpu(), verdict.distance.cpu()
        return Scores(counts, counts, counts, feasible, distance, confusion=matrix)

    scores = replace(fooled(y), changed=fooled(before.prediction).wrong)
    return scores if target is None else replace(scores, success=fooled(y, target).wrong)


def objective_of(adversary: Adversary, default: ObjectiveLike = cross_entropy) -> Objective:
    """What says when a model is fooled: an Attack's own, for a Perturbation `default`."""
    return as_objective(adversary.objective if isinstance(adversary, Attack) else default)
