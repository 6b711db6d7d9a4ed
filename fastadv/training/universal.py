"""min over theta of max over one delta of the mean over i of L(f(x_i + delta), y_i)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastadv import _checks
from fastadv.attack import Attack, require_attack
from fastadv.model import Model
from fastadv.objectives import ObjectiveLike
from fastadv.perturbation import Perturbation
from fastadv.problem import output
from fastadv.rules import Momentum, Steepest
from fastadv.training.madry import learner, training_loss
from fastadv.universal.ascent import Ascent
from fastadv.universal.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Universal:
    """The loss of universal adversarial training (Shafahi et al. 1811.11304, algorithm 2).

    One backward serves both players: `.backward()` on the loss gives theta its gradient, and on the
    way the perturbation takes its step along the same samples' input gradients.

    attack: the ball, the rule (Steepest or Momentum: the step must not depend on how the loss is
    scaled) and the start of delta. loss_cap: beta; a sample whose loss exceeds it gives delta no
    gradient, while theta still learns from it. loss: as in Madry. Every backward to x_adv is a
    step: a second one (retain_graph) steps again, autograd.grad by the parameters alone does not.

    Under torch.distributed, once the caller has initialised it, delta's step is along the sum over
    the ranks of `group` (None: the default one), one reduction of delta's size in each backward:
    give every rank as many batches as the others, as DistributedDataParallel asks for, too.
    """

    def __init__(
        self,
        attack: Attack,
        loss_cap: float | None = None,
        loss: ObjectiveLike | None = None,
        init: Perturbation | None = None,
        generator: torch.Generator | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        require_attack(attack)
        if not isinstance(attack.rule, (Steepest, Momentum)):
            raise ValueError(
                f"`attack` must have the rule Steepest or Momentum, got {attack.rule}: other steps "
                "would change with the scale of the loss"
            )
        self.attack, self.loss_cap = attack, loss_cap
        self.loss = training_loss(attack, loss)
        self._ascent = Ascent(attack, init, generator=generator, ranks=Ranks(group))

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation as it is now, a copy; RuntimeError before the first batch."""
        return self._ascent.perturbation

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of `model`, in the mode that it is in, on clamp(x + delta)."""
        _checks.data(x, "x")
        _checks.inputs(x, self.attack.ball)
        x_adv = self._ascent.apply(x.detach()).requires_grad_()
        logits = output(learner(model), x_adv)
        self.loss.check(logits, y)
        losses = self.loss(logits, y)
        counts = None if self.loss_cap is None else losses.detach() <= self.loss_cap
        x_adv.register_hook(  # type: ignore[no-untyped-call]
            lambda grads: self._step(grads, counts)
        )
        return losses.mean()

    def _step(self, grads: Tensor, counts: Tensor | None) -> None:
        # Where a scaled loss overflows, GradScaler skips theta's step, and so does delta here.
        # The loss is a mean: a rank with more samples has that much more to say.
        self._ascent.step(grads, counts, scale=len(grads), finite=True)
