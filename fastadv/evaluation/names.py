"""Short names for tables: PGD-10 linf 8/255."""

from __future__ import annotations

import math

from fastadv.attack import Attack
from fastadv.balls import Ball
from fastadv.objectives import as_objective, cross_entropy
from fastadv.perturbation import Perturbation
from fastadv.rules import Steepest

_METHODS = {"Steepest": "PGD", "Momentum": "MI-FGSM", "Auto": "APGD", "Gradient": "gradient"}


def label(adversary: Attack | Perturbation) -> str:
    """Method and steps, objective unless cross-entropy, restarts, ball."""
    ball = f"{adversary.ball.order} {readable(adversary.ball)}"
    if isinstance(adversary, Perturbation):
        return f"universal {ball}"
    single = adversary.steps == 1 and adversary.start == "zero"
    if single and isinstance(adversary.rule, Steepest):
        name = "FGSM"
    else:
        rule = type(adversary.rule).__name__
        name = f"{_METHODS.get(rule, rule)}-{adversary.steps}"
    objective = as_objective(adversary.objective).name.partition("(")[0]  # without pixels' settings
    loss = "" if objective == cross_entropy.name else f" {objective}"
    restarts = f" x{adversary.restarts}" if adversary.restarts > 1 else ""
    return f"{name}{loss}{restarts} {ball}"


def readable(ball: Ball) -> str:
    """The radius, as a multiple of 1/255 where it is one and that is shorter."""
    parts = ball.radius * 255
    names = [f"{ball.radius:.4g}"]
    if math.isfinite(parts) and abs(parts - round(parts)) < 1e-9:
        names.append(f"{round(parts)}/255")
    return min(names, key=len)
