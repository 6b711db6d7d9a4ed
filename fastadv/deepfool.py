"""DeepFool (Moosavi-Dezfooli et al. 1511.04599): the nearest class boundary, linearised and crossed
again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from fastadv import _checks, ops
from fastadv.balls import L2, Ball, Bounds, Linf
from fastadv.model import MODES, Model, Pull, crafting, held, vjp
from fastadv.objectives import cross_entropy
from fastadv.problem import NO_GRADIENT, output
from fastadv.reference import box, clamp, compute_dtype

_BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2}
_DUAL = {"linf": 1.0, "l2": 2.0}
_NUDGE = 1e-4  # beyond the boundary, in the units of x: the authors' constant
_NAN = "`model` gave NaN: its logits or their gradients are no number"
_MAPS = ": maps go with fa.pgd and its like, whose loss is the mean over a sample's pixels"
_FEW = 8  # so many samples' gradients are cheaper in one vmapped backward than in one a class


@dataclass(frozen=True)
class DeepFoolResult:
    """What DeepFool found.

    x_adv: (N, *shape), x itself where nothing was needed. success: (N,) bool, whether the model
    changes its mind at x_adv. distance: (N,) float64, ||x_adv - x||. steps: (N,), those taken.
    forwards: samples put through the model.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    steps: Tensor
    forwards: int


@dataclass(frozen=True)
class DeepFool:
    """min over x_adv of ||x_adv - x|| such that the model's prediction changes: a frozen value.

    At each step the model is taken for linear. The boundary to class k lies |f_k| / ||w_k|| away,
    f_k = z_k - z_0 and w_k its gradient (||.|| the dual norm), and r moves across the nearest one;
    x_adv = clamp(x + overshoot * r), once the prediction there is another (algorithm 2).

    norm: "l2" or "linf". steps: at most so many. classes: the k with the largest logits at x, the
    prediction among them, stay the candidates. bounds: as a ball's; None is no box, as published.
    mode: as an Attack's. On a linear model without a box one step is the exact optimum, times
    overshoot.

    Raises TypeError or ValueError for values that no search can have.
    """

    norm: str = "l2"
    steps: int = 50
    overshoot: float = 1.02
    classes: int = 10
    bounds: Bounds | None = (0.0, 1.0)
    mode: str = "eval"

    def __post_init__(self) -> None:
        if self.norm not in _BALLS:
            raise ValueError(f"`norm` must be one of {tuple(_BALLS)}, got {self.norm!r}")
        for name, least in (("steps", 0), ("classes", 2)):
            count = getattr(self, name)
            if not isinstance(count, Integral) or int(count) < least:
                raise ValueError(f"`{name}` must be a whole number from {least}, got {count!r}")
        if not 1 <= self.overshoot < math.inf:
            raise ValueError(f"`overshoot` must be finite and at least 1, got {self.overshoot}")
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}, got {self.mode!r}")
        object.__setattr__(self, "bounds", self.ball.bounds)

    @property
    def ball(self) -> Ball:
        """All of the box: a ball without a radius."""
        return _BALLS[self.norm](math.inf, self.bounds)

    def __call__(
        self,
        model: Model,
        x: Tensor,  # (N, *shape)
        y: Tensor | None = None,  # (N,)
    ) -> Tensor:
        """The adversarial examples (N, *shape); see `run`."""
        return self.run(model, x, y).x_adv

    def run(
        self,
        model: Model,
        x: Tensor,  # (N, *shape)
        y: Tensor | None = None,  # (N,)
    ) -> DeepFoolResult:
        """Moves each sample until the model says something else than y (None: than it says at x).

        A sample that is wrong at x stays there. One that no step took across keeps its last point,
        with success False. Those that are done leave the batch.

        x, the model's mode, its buffers, requires_grad and .grad stay untouched, and nothing is
        drawn. Raises TypeError or ValueError where x lies outside the bounds, y does not fit the
        logits, the model has no gradient, or it gives NaN.
        """
        _checks.data(x, "x")
        with torch.inference_mode(False), torch.no_grad():
            x = x.detach().clone() if x.is_inference() else x.detach()
            _checks.inputs(x, self.ball)
            search = Search(self, x, _checks.labels(y, "y"))
            if x.numel():
                with crafting(model, self.mode), held(model):
                    search.climb(model)
        distance = self.ball.norm(search.x_adv.double() - x.double())
        return DeepFoolResult(search.x_adv, search.success, distance, search.steps, search.forwards)


class Search:
    """DeepFool under way on a batch that was checked, of a model in the mode that it shall have."""

    def __init__(self, rule: DeepFool, x: Tensor, y: Tensor | None, checked: bool = False) -> None:
        self.rule, self.x, self.y, self.checked = rule, x, y, checked  # y's classes: are there such
        self.x_adv = x.clone(memory_format=torch.contiguous_format)
        self.r = torch.zeros_like(self.x_adv, dtype=compute_dtype(x.dtype))
        self.success = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.steps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.order = torch.empty(0, dtype=torch.long, device=x.device)  # (N, K): the candidates
        self.forwards = 0

    def climb(self, model: Model) -> None:
        """Steps until every sample is across or has used its steps."""
        todo = torch.arange(len(self.x), device=self.x.device)
        for k in range(self.rule.steps + 1):
            logits, pull = self._forward(model, todo)
            best, said = logits.detach().max(1)  # NaN where any logit is
            if k == 0:
                self._rank(logits.detach())
            if bool(best.isnan().any()):
                raise ValueError(_NAN)
            fooled = said != self.order[todo, 0]
            if bool(fooled.any()):
                self.success[todo[fooled]] = True
                todo = todo[~fooled]
            if k == self.rule.steps or len(todo) == 0:
                return
            if len(todo) < len(logits):  # cheaper than a backward a class through those done
                logits, pull = self._forward(model, todo)
            self._step(todo, logits.detach(), pull)

    def _forward(self, model: Model, todo: Tensor) -> tuple[Tensor, Pull]:
        """(logits, their pullback) at x_adv of the samples `todo`."""
        point = self.x_adv if len(todo) == len(self.x) else self.x_adv[todo]
        logits, pull = _pulled(model, point, self.rule.classes - 1)
        if len(logits) != len(todo) or logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"`model(x)` must be ({len(todo)}, classes), two or more, "
                f"got {_checks.text(logits.shape)}" + _MAPS * (logits.dim() == 4)
            )
        self.forwards += len(todo)
        return logits, pull

    def _rank(self, logits: Tensor) -> None:
        """The candidates of each sample: its label, then the other classes, the likeliest first."""
        self.order = logits.sort(dim=1, descending=True, stable=True).indices
        self.order = self.order[:, : self.rule.classes]
        if self.y is not None:  # where it is not the prediction, the sample is done
            if not self.checked:
                cross_entropy.check(logits, self.y)
            self.order[:, 0] = self.y

    def _step(self, todo: Tensor, logits: Tensor, pull: Pull) -> None:
        """r moves across the nearest of the boundaries as they look from x_adv."""
        order = self.order[todo]
        z = logits.to(self.r.dtype).gather(1, order)
        w = pull(_differences(logits, order)).to(self.r.dtype).flatten(2)  # (M, K - 1, d)
        size = torch.linalg.vector_norm(w, _DUAL[self.rule.norm], dim=2)
        away = (z[:, 1:] - z[:, :1]).abs()
        distance = torch.where(size == 0, math.inf, away / size)
        if bool(distance.isnan().any()):
            raise ValueError(_NAN)
        nearest, k = distance.min(1)
        direction = w[torch.arange(len(k), device=k.device), k]
        if self.rule.norm == "l2":
            direction = direction / size.gather(1, k[:, None])
        else:
            direction = direction.sign()
        length = nearest + _NUDGE
        move = torch.where(length.isinf()[:, None], 0, length[:, None] * direction)  # w = 0
        self._move(todo, move.view(len(todo), *self.x.shape[1:]))

    def _move(self, todo: Tensor, move: Tensor) -> None:
        every = len(todo) == len(self.x)
        x, r = (self.x, self.r) if every else (self.x[todo], self.r[todo])
        origin, r = x.to(r.dtype), r + move
        bounds = self.rule.ball.bounds_for(x)
        if bounds is not None:
            lower, upper = (bound - origin for bound in box(bounds, origin))
            r = clamp(r, lower / self.rule.overshoot, upper / self.rule.overshoot)
        point = (origin + self.rule.overshoot * r).to(x.dtype)
        if bounds is not None:  # what roundings left of it
            ops.project_(point, x, ball=self.rule.ball)
        if every:
            self.x_adv, self.r = point, r
        else:
            self.x_adv[todo], self.r[todo] = point, r
        self.steps[todo] += 1


def _differences(logits: Tensor, order: Tensor) -> Tensor:
    """What z_k - z_0 are of the logits z, for the classes k of `order` (M, K): (M, K - 1, C)."""
    pairs = logits.new_zeros(len(order), order.shape[1] - 1, logits.shape[1])
    pairs.scatter_(2, order[:, 1:, None], 1.0)
    return pairs.scatter_(2, order[:, :1, None].expand(-1, pairs.shape[1], -1), -1.0)


def _pulled(model: Model, x: Tensor, rows: int) -> tuple[Tensor, Pull]:
    """(logits at x (M, *shape), their pullback): from (M, R, C) to (M, R, *shape).

    One forward serves all; the backwards are one over few samples, vmapped (2 to 3 times faster on
    one sample of a small net) or, of a compiled model, a batch, and R over many.
    """
    found = vjp(model, x, rows, probe=True) if rows > 1 and len(x) <= _FEW else None
    if found is not None:
        logits, pull = found
        return logits, lambda by: pull(by.flatten(0, 1)).view(*by.shape[:2], *x.shape[1:])
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = output(model, leaf.clone())  # a model may write on its input

    def backwards(by: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise ValueError(NO_GRADIENT)
        if len(x) <= _FEW:
            try:
                return _pull(logits, leaf, by.transpose(0, 1), batched=True).transpose(0, 1)
            except RuntimeError:  # a backward that vmap cannot run, as a kernel of one's own
                pass
        return torch.stack([_pull(logits, leaf, one) for one in by.unbind(1)], 1)

    return logits, backwards


def _pull(logits: Tensor, leaf: Tensor, by: Tensor, batched: bool = False) -> Tensor:
    (grad,) = torch.autograd.grad(
        logits, leaf, by, retain_graph=True, allow_unused=True, is_grads_batched=batched
    )
    if grad is None:
        raise ValueError(NO_GRADIENT)
    return grad
