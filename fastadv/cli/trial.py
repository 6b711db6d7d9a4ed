"""One model of the demo: trained, attacked, scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor, nn

from fastadv import recipes, training, universal
from fastadv.attack import Attack
from fastadv.balls import L2, Linf
from fastadv.cli import digits
from fastadv.evaluation import accuracy_by_radius, evaluate, plots
from fastadv.evaluation.report import Report
from fastadv.objectives import cross_entropy
from fastadv.perturbation import Perturbation

LINF, EUCLIDEAN, UNIVERSAL = Linf(0.15), L2(0.75), Linf(0.2)


@dataclass(frozen=True)
class Effort:
    """How much of everything: training, attacks, and the points of a curve."""

    epochs: int
    robust_epochs: int
    steps: int
    universal_epochs: int
    points: int


FULL = Effort(epochs=20, robust_epochs=30, steps=20, universal_epochs=10, points=7)
QUICK = Effort(epochs=6, robust_epochs=6, steps=10, universal_epochs=3, points=4)


@dataclass(frozen=True)
class Trial:
    """A model, what it was attacked with, and what came of it."""

    model: nn.Module
    adversaries: dict[str, Attack | Perturbation]
    report: Report
    seconds: float  # to train and to attack


def natural(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of natural training."""
    return cross_entropy(model(x), y).mean()


def madry() -> digits.Loss:
    """The loss of adversarial training on a linf and an l2 ball, batch by batch in turn."""
    balls = (Linf(0.2), L2(1.0))  # somewhat wider than those of the test
    losses = cycle([training.Madry(recipes.pgd(ball, steps=5)) for ball in balls])
    return lambda model, x, y: next(losses)(model, x, y)


def trial(data: digits.Digits, train: Callable[[], nn.Module], seed: int, effort: Effort) -> Trial:
    """Trains a model, finds its universal perturbation in training, attacks the test set."""
    began = time.perf_counter()
    model = train()
    found = universal.gradient(
        recipes.bim(UNIVERSAL, step_size=UNIVERSAL.radius / 10),
        model,
        data.batches(seed=seed),
        epochs=effort.universal_epochs,
    )
    adversaries: dict[str, Attack | Perturbation] = {
        "PGD linf": recipes.pgd(LINF, steps=effort.steps),
        "PGD l2": recipes.pgd(EUCLIDEAN, steps=effort.steps),
        "universal": found,
        "noise": _noise(data.x.shape[1:], seed),
    }
    report = evaluate(model, data.test_batches(), adversaries, seed=seed)
    for row in report.attacks:
        if row.infeasible:  # they do not count as fooled, and the table would flatter the model
            raise RuntimeError(f"{row.infeasible} samples of {row.name} left the ball or the box")
    return Trial(model, adversaries, report, time.perf_counter() - began)


def _noise(shape: torch.Size, seed: int) -> Perturbation:
    """A corner of the universal perturbation's ball at random: noise as large as it can be."""
    signs = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    ball = replace(UNIVERSAL, bounds=None)
    return Perturbation(ball.project(signs, torch.zeros_like(signs)), UNIVERSAL)


def curves(
    trials: dict[str, Trial], data: digits.Digits, seed: int, effort: Effort
) -> list[plots.Curve]:
    """Accuracy against the radius, to twice the table's, under both PGDs."""
    drawn = []
    for name, ball in (("PGD linf", LINF), ("PGD l2", EUCLIDEAN)):
        radii = [2 * ball.radius * k / (effort.points - 1) for k in range(effort.points)]
        attack = recipes.pgd(ball, steps=effort.steps)
        accuracy = {
            model: accuracy_by_radius(one.model, data.test_batches(), attack, radii, seed=seed)
            for model, one in trials.items()
        }
        title = f"{name.replace(' ', f'-{effort.steps} ')}"
        drawn.append(plots.Curve(title, radii, accuracy, ball.radius))
    return drawn
