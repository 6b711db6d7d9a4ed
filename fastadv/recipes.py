"""Well-known attacks, each one expression: the names that papers and other libraries use."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from fastadv.attack import Attack
from fastadv.balls import Ball, require_ball
from fastadv.deepfool import DeepFool
from fastadv.rules import Auto, Momentum, Rule, Steepest, StepSize

OPTIONS = (
    "objective",
    "start",
    "restarts",
    "stop",
    "mode",
)  # Attack's own; deepfool is none


def _attack(ball: Ball, rule: Rule | Auto, steps: int, options: dict[str, Any]) -> Attack:
    """Attack(ball, rule, steps, **options). Raises TypeError for options that no recipe has."""
    for name in options:
        if name not in OPTIONS:
            close = get_close_matches(name, ("step_size", "steps", *OPTIONS), 1, 0.8)
            hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(OPTIONS)}"
            raise TypeError(f"`{name}` is no option of this recipe: {hint}")
    return Attack(ball, rule, steps, **options)


def _size(step_size: StepSize | None, ball: Ball, steps: int, lengths: float) -> StepSize:
    """None: what goes `lengths` radii in all steps. Attack refuses steps that are no number."""
    if step_size is not None:
        return step_size
    return lengths * require_ball(ball).radius / (max(steps, 1) if isinstance(steps, int) else 1)


def fgsm(ball: Ball, **options: Any) -> Attack:
    """One steepest step of the radius from x (Goodfellow et al. 1412.6572; in l2 its analogue)."""
    return pgd(ball, require_ball(ball).radius, 1, **{"start": "zero"} | options)


def bim(ball: Ball, step_size: StepSize | None = None, steps: int = 10, **options: Any) -> Attack:
    """PGD from x itself (Kurakin et al. 1607.02533)."""
    return pgd(ball, step_size, steps, **{"start": "zero"} | options)


def pgd(ball: Ball, step_size: StepSize | None = None, steps: int = 10, **options: Any) -> Attack:
    """Projected gradient ascent from a random start, uniform by volume (Madry et al. 1706.06083).

    step_size: None is 2.5 * radius / steps, which can reach any point of the ball from any other.
    """
    return _attack(ball, Steepest(_size(step_size, ball, steps, 2.5)), steps, options)


def mi_fgsm(
    ball: Ball,
    step_size: StepSize | None = None,
    steps: int = 10,
    decay: float = 1.0,
    **options: Any,
) -> Attack:
    """Momentum over l1-normalised gradients, from x (Dong et al. 1710.06081).

    step_size: None is radius / steps.
    """
    return _attack(
        ball,
        Momentum(_size(step_size, ball, steps, 1.0), decay),
        steps,
        {"start": "zero"} | options,
    )


def apgd(ball: Ball, steps: int = 100, rho: float = 0.75, **options: Any) -> Attack:
    """Auto-PGD: no step size to choose (Croce and Hein 2003.01690); Linf and L2.

    With `objective=fa.dlr` it is APGD-DLR. A sample keeps the first iterate that fools the model.
    """
    return _attack(ball, Auto(rho), steps, options)


def deepfool(norm: str = "l2", steps: int = 50, **options: Any) -> DeepFool:
    """The smallest perturbation, l2 or linf, that changes the prediction (1511.04599).

    The options are DeepFool's: overshoot, classes, bounds, mode.
    """
    return DeepFool(norm, steps, **options)
