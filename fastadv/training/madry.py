"""min over theta of the mean over i of max over delta_i of L(f(x_i + delta_i), y_i)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fastadv.attack import Attack, require_attack
from fastadv.engine import Compiled
from fastadv.labels import ClassLabels
from fastadv.model import Model
from fastadv.objectives import (
    Objective,
    ObjectiveLike,
    as_objective,
    binary_cross_entropy,
    cross_entropy,
    kl,
)


def training_loss(attack: Attack, loss: ObjectiveLike | None) -> Objective:
    """`loss`, or where it is None the cross-entropy that goes with the attack's labels."""
    if loss is not None:
        return as_objective(loss)
    own = as_objective(attack.objective)
    if own in (binary_cross_entropy, kl):
        return own
    same = isinstance(own.labels, ClassLabels)  # the pixels that count
    return replace(cross_entropy, labels=own.labels) if same else cross_entropy


def learner(model: Model) -> Model:
    """What learns: of a compiled model, whose forward has no gradients for weights, the model
    itself on the engine's kernels."""
    return model.learn if isinstance(model, Compiled) else model


@dataclass(frozen=True)
class Madry:
    """The loss of adversarial training (Madry et al. 1706.06083, equation 2.1).

    attack: the inner maximisation, crafted in its own mode (default eval; Rice et al. 2002.11569
    craft in train mode). loss: the outer loss; None is cross_entropy, or binary_cross_entropy where
    the attack's objective is that, or kl.
    """

    attack: Attack
    loss: ObjectiveLike | None = None

    def __post_init__(self) -> None:
        require_attack(self.attack)

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of `model`, in the mode that it is in, on x_adv: call .backward() on it.

        A compiled model crafts, and its `learn` is what learns.
        """
        x_adv = self.attack(model, x, y)
        return training_loss(self.attack, self.loss)(learner(model)(x_adv), y).mean()
