"""Attacks: max over each delta_i of the loss, by projected gradient ascent (1706.06083)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from fastadv import _checks, ops
from fastadv.apgd import auto_ascent
from fastadv.balls import Ball, require_finite
from fastadv.engine import Compiled
from fastadv.model import MODES, Model, crafting, held
from fastadv.objectives import ObjectiveLike, as_objective, cross_entropy
from fastadv.problem import Problem, output
from fastadv.reference import compute_dtype, rows
from fastadv.rules import Auto, Rule, Steepest
from fastadv.stops import AT_FOOLED, STOPS, ascend_until_done, require_stop

STARTS = ("uniform", "zero")


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    x_adv: (N, *shape), in the ball and the box exactly. success: (N,) bool, whether the model as
    crafted on is fooled at x_adv. loss: (N,), the objective there. forwards: samples put through
    the model; forwards_full: as many as the run takes without a stop.
    """

    x_adv: Tensor
    success: Tensor
    loss: Tensor
    forwards: int
    forwards_full: int


@dataclass(frozen=True)
class Attack:
    """A search in a ball: a frozen value of numbers and names; it prints, hashes and compares.

    ball: where (balls.py). rule: how to step (rules.py). steps: how often, from a start "uniform"
    by volume or "zero" (x itself). objective: what is maximised (objectives.py), or any callable
    (logits, y) -> (N,). restarts: independent runs, of which each sample keeps its best: fooled
    before not fooled, then the larger loss.
    stop: when a sample leaves the batch before the last step.
        None: never; the attack returns its last iterate.
        "fooled": at the first iterate that fools the model, which it keeps (any-iterate semantics).
        "cycle": once its iterates repeat, which is confirmed over one further period; it ends on
        the iterate that all the steps would end on, bit for bit (arXiv 2503.19347).
        "resolved": at whichever comes first; its results are those of "fooled".
    A cycle asks for steps that depend on x_adv alone (Steepest or Gradient of one step size) and a
    deterministic model that treats a sample alike whatever else is in the batch. PyTorch's matrix
    products may round otherwise in a smaller batch, of under 4 samples above all, and so may a
    dense stack under fa.compile, whose full run is one call: a sample then ends as it might have
    ended in other company.
    mode: "eval", "train" or "keep": the model's mode while crafting. Flags and batch norm's
    statistics are restored. A callable that is no nn.Module is run as it is.

    Raises ValueError for values that no attack can have.
    """

    ball: Ball
    rule: Rule | Auto
    steps: int = 10
    objective: ObjectiveLike = cross_entropy
    start: str = "uniform"
    restarts: int = 1
    stop: str | None = None
    mode: str = "eval"

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Ball):
            raise TypeError(f"`ball` must be Linf, L2 or L1, got {type(self.ball).__name__}")
        if not isinstance(self.rule, (Rule, Auto)):
            raise TypeError(f"`rule` must be a step rule, got {type(self.rule).__name__}")
        for name, least in (("steps", 0), ("restarts", 1)):
            count = getattr(self, name)
            if not isinstance(count, Integral) or int(count) < least:
                raise ValueError(f"`{name}` must be a whole number from {least}, got {count!r}")
        for name, choices in (("start", STARTS), ("stop", STOPS), ("mode", MODES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}")
        require_stop(self.stop, self.rule, self.mode)
        if self.start == "zero" and self.restarts > 1 and self.mode == "eval":
            raise ValueError(
                "`restarts` needs start='uniform', as pgd has: from x itself each does the same, "
                f"got restarts={self.restarts} and start='zero'"
            )
        if isinstance(self.rule, Auto) and self.ball.order == "l1":
            raise ValueError("`ball` must be Linf or L2 for apgd (2003.01690), got L1")

    def __call__(
        self,
        model: Model,
        x: Tensor,  # (N, *shape)
        y: Tensor | None = None,  # (N,), or as the objective takes it
        *,
        target: Tensor | None = None,  # as y
        radius: float | Tensor | None = None,  # () or (N,)
        generator: torch.Generator | None = None,
        offset: int = 0,
    ) -> Tensor:
        """The adversarial examples (N, *shape); see `run`."""
        score = self.restarts > 1  # the last iterate's own forward is saved where nobody asks
        return self._start(model, x, y, target, radius, generator, offset, score).x_adv

    def run(
        self,
        model: Model,
        x: Tensor,  # (N, *shape)
        y: Tensor | None = None,  # (N,), or as the objective takes it
        *,
        target: Tensor | None = None,  # as y
        radius: float | Tensor | None = None,  # () or (N,)
        generator: torch.Generator | None = None,
        offset: int = 0,
    ) -> AttackResult:
        """argmax over x_adv in the ball around x of objective(model(x_adv), y).

        y=None takes the model's predictions on x. With a target the attack seeks it, by the
        objective's own targeted form. `radius` replaces the ball's, one for all or one a sample;
        the rule's step sizes stay as they are.
        A random start draws one seed from `generator` (None: torch's default one), and is a
        function of that seed, the restart and `offset` + the sample's index: give each batch its
        offset, and the split does not matter.

        x, the model's mode, its buffers, requires_grad and .grad stay untouched.
        Raises TypeError or ValueError where x lies outside the bounds, y does not fit the logits,
        the model has no gradient, or it gives NaN. An infinite gradient has a sign, which serves
        the linf ball's steepest steps; elsewhere it raises too.
        """
        return self._start(model, x, y, target, radius, generator, offset, True)

    def _start(
        self, model: Model, x: Tensor, y: Tensor | None, target: Tensor | None,
        radius: float | Tensor | None, generator: torch.Generator | None, offset: int, score: bool,
    ) -> AttackResult:  # fmt: skip
        _checks.data(x, "x")
        objective = as_objective(self.objective)
        with torch.inference_mode(False), torch.no_grad():
            x = x.detach().clone() if x.is_inference() else x.detach()
            y, target = _checks.labels(y, "y"), _checks.labels(target, "target")
            limit = self.ball.radius if radius is None else radius
            r = ops.per_sample(limit, x, "radius", round_down=True)
            r = r.reshape(()) if r.numel() == 1 else r
            _checks.inputs(x, self.ball, r)
            _checks.binding(self.ball.order, r, self.ball.bounds_for(x))
            if isinstance(self.rule, Auto) and not bool(torch.isfinite(r).all()):
                raise ValueError("`radius` must be finite: apgd's first step is twice it, got inf")
            if x.numel() == 0:
                return _nothing(x)
            with crafting(model, self.mode), held(model):
                if y is None and (target is None or objective.targeted_needs_y):
                    y = objective.predict(output(model, x.clone()))  # a model may write on it
                problem = Problem(model, objective, self.ball, x, r, y, target)
                problem.signs_serve = self._takes_signs()
                result = self._search(problem, generator, offset, score)
        problem.raise_if_nan()
        return result

    def _search(
        self, problem: Problem, generator: torch.Generator | None, offset: int, score: bool
    ) -> AttackResult:
        x = problem.x
        seed = 0
        if self.start == "uniform":
            require_finite(problem.radius)
            seed = draw_seed(generator)
        best = _nothing(x)
        todo = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            start = x.clone()
            if self.start == "uniform":
                start = self.ball.start(x, problem.radius, seed, offset, restart)
            if restart and self.stop in AT_FOOLED:  # who is fooled already is done
                todo = (~best.success).nonzero()[:, 0]
                if len(todo) == 0:
                    break
            part = problem.take(todo) if len(todo) < len(x) else problem
            x_adv = self._climb(part, start[todo] if part is not problem else start)
            if score:
                _keep_better(best, todo, x_adv, *part.score(x_adv))
            else:
                best.x_adv.copy_(x_adv)
        a_run = self.steps + isinstance(self.rule, Auto) + score
        full = len(x) * self.restarts * a_run
        return replace(best, forwards=problem.tally.forwards, forwards_full=full)

    def _takes_signs(self) -> bool:
        return self.ball.order == "linf" and isinstance(self.rule, (Steepest, Auto))

    def _climb(self, problem: Problem, x_adv: Tensor) -> Tensor:
        plan = problem.model.attack_plan if isinstance(problem.model, Compiled) else None
        if plan is not None and (climb := plan(self, problem)) is not None:
            return climb(x_adv)
        if isinstance(self.rule, Auto):
            return auto_ascent(problem, x_adv, self.rule, self.steps)
        if self.stop:
            return ascend_until_done(problem, x_adv, self.rule, self.steps, self.stop)
        return _ascend(problem, x_adv, self.rule, self.steps)


def require_attack(attack: object) -> None:
    """Raises TypeError unless `attack` is an Attack."""
    if not isinstance(attack, Attack):
        raise TypeError(f"`attack` must be an Attack, as fa.pgd(ball) gives, got {attack!r}")


def _ascend(problem: Problem, x_adv: Tensor, rule: Rule, steps: int) -> Tensor:
    """x_adv <- P(x_adv + step_size * direction(grad)), `steps` times."""
    state, numbers = rule.start(x_adv), rule.numbers_for(x_adv, steps)
    for k in range(steps):
        _, grad, _ = problem.gradient(x_adv)
        rule.step_(state, numbers(k), x_adv, grad, problem.x, problem.ball, problem.radius)
    return x_adv


def _nothing(x: Tensor) -> AttackResult:
    """The result before anything was found: no success, and any loss is larger."""
    loss = x.new_full((len(x),), -math.inf, dtype=compute_dtype(x.dtype))
    return AttackResult(x.clone(), torch.zeros_like(loss, dtype=torch.bool), loss, 0, 0)


def _keep_better(
    best: AttackResult, todo: Tensor, x_adv: Tensor, loss: Tensor, fooled: Tensor
) -> None:
    """Takes over the samples whose x_adv is better: fooled before not, then the larger loss."""
    had, most = best.success[todo], best.loss[todo]
    better = (fooled & ~had) | ((fooled == had) & ~(loss <= most))
    best.x_adv[todo] = torch.where(rows(better, x_adv), x_adv, best.x_adv[todo])
    best.success[todo] = fooled | had
    best.loss[todo] = torch.where(better, loss.to(most.dtype), most)


def draw_seed(generator: torch.Generator | None) -> int:
    """The one draw of a run."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` must be a torch.Generator, got {type(generator).__name__}")
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))
