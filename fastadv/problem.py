"""The inner problem of one batch: the loss of f at x_adv, and its gradient by x_adv."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastadv import _checks
from fastadv.balls import Ball
from fastadv.model import Model, Pull, vjp
from fastadv.objectives import Objective


@dataclass
class Tally:
    """What a run has used and met, over all the problems that it was cut into."""

    forwards: int = 0  # samples put through the model
    seen: list[Tensor] = field(default_factory=list)  # looked at once, after the loop: a NaN?


@dataclass
class Problem:
    """max over x_adv in the ball around x of objective(model(x_adv), y), sample by sample.

    y and target are checked against the first logits seen, and are from then on as the head takes
    them.
    """

    model: Model
    objective: Objective
    ball: Ball
    x: Tensor  # (N, *shape)
    radius: Tensor  # () or (N,), as the kernels take it
    y: Tensor | None
    target: Tensor | None
    tally: Tally = field(default_factory=Tally)
    checked: bool = False
    signs_serve: bool = False  # of the gradient only signs are taken: an infinite one has one

    def gradient(self, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss (N,), its gradient (N, *shape), fooled (N,)) at x_adv: one forward, one backward.

        Only the input's gradient is asked for: no parameter gets one.
        """
        return self.gradient_by(vjp(self.model, x_adv), x_adv)

    def gradient_by(
        self, pulled: tuple[Tensor, Pull] | None, x_adv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """gradient, by the model's vjp at x_adv; None: it has none, and autograd serves."""
        if pulled is not None:
            loss, logits_grad, fooled = self._head(pulled[0])
            grad = pulled[1](logits_grad)
        else:
            loss, grad, fooled = self._by_autograd(x_adv)
        if grad.numel():
            least, most = grad.aminmax()  # NaN where any is; inf - inf is NaN too
            wrong = least if self.signs_serve else (least - least) + (most - most)
            self.tally.seen.append(wrong[None].to(loss.dtype))
        return loss, grad, fooled

    def _by_autograd(self, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_()
            logits = output(self.model, leaf.clone())  # a model may write on its input
            if not logits.requires_grad:
                raise ValueError(NO_GRADIENT)
            loss, logits_grad, fooled = self._head(logits)
            (grad,) = torch.autograd.grad(logits, leaf, logits_grad, allow_unused=True)
        if grad is None:
            raise ValueError(NO_GRADIENT)
        return loss, grad, fooled

    def score(self, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (N,), fooled (N,)) at x_adv: one forward."""
        loss, fooled, _ = self.judge(x_adv)
        return loss, fooled

    def judge(self, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss (N,), fooled (N,), logits) at x_adv: one forward."""
        logits = output(self.model, x_adv.clone())  # it may write on that too
        loss, _, fooled = self._head(logits)
        return loss, fooled, logits.detach()

    def take(self, index: Tensor) -> Problem:
        """The problem of the samples `index` alone, (M,) of int64."""

        def rows(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[index]

        radius = self.radius[index] if self.radius.dim() and len(self.radius) > 1 else self.radius
        return Problem(
            self.model, self.objective, self.ball, self.x[index], radius, rows(self.y),
            rows(self.target), self.tally, self.checked, self.signs_serve,
        )  # fmt: skip

    def prepare(self, logits: Tensor) -> None:
        """Checks y and target against the first logits, and takes them over as the head does."""
        if self.checked:
            return
        if len(logits) != len(self.x):
            raise ValueError(
                f"`model(x)` must have one row a sample, ({len(self.x)}, ...), "
                f"got {_checks.text(logits.shape)}"
            )
        self.y, self.target = self.objective.prepare(logits, self.y, self.target)
        self.checked = True

    def labels(self) -> tuple[Tensor, Tensor | None, bool]:
        """(y, target, targeted) as the fused heads take them."""
        return *self.objective.given(self.y, self.target), self.target is not None

    def _head(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.detach()
        self.prepare(logits)
        loss, grad, fooled = self.objective.head(logits, self.y, self.target)
        self.tally.forwards += len(logits)
        self.tally.seen.append(loss)
        return loss, grad, fooled

    def raise_if_nan(self) -> None:
        """Raises ValueError if any loss or gradient of the run was NaN."""
        seen = self.tally.seen
        if seen and bool(torch.cat(seen).isnan().any()):
            raise ValueError(
                "`model` gave NaN, or an infinite gradient where its length counts, at a point of "
                "the ball: its logits, their loss or its gradient are no number"
            )


NO_GRADIENT = (
    "`model` must be differentiable with respect to its input, but its output does not depend on x "
    "through autograd: is there a detach(), a torch.no_grad() or an argmax in it?"
)


def output(model: Model, x: Tensor) -> Tensor:
    """model(x), or an error that says what a model must return."""
    if not callable(model):
        raise TypeError(f"`model` must be callable, got {type(model).__name__}")
    try:
        logits = model(x)
    except RuntimeError as error:
        if mismatch := _mismatch(model, x):
            raise TypeError(mismatch) from error
        raise
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"`model` must map a tensor to a tensor of logits, got {type(logits).__name__}: "
        "wrap it, as in lambda x: model(x).logits"
    )


def _mismatch(model: Model, x: Tensor) -> str | None:
    """What in x may have kept the model from running. No mistake by itself: a model may cast."""
    of = getattr(model, "__self__", model)  # of a compiled model's `learn`
    found = of.parameters() if isinstance(of, nn.Module) else ()
    first = next((p for p in found if p.is_floating_point()), None)
    if first is None or (first.dtype == x.dtype and first.device == x.device):
        return None
    ours, theirs = str(x.dtype)[6:], str(first.dtype)[6:]
    if x.device != first.device:
        ours, theirs = f"on {x.device}", f"on {first.device}"
    return f"`x` is {ours} but the model's parameters are {theirs}: convert one, as in x.to(...)"
