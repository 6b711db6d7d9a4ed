"""One delta, climbing: what fa.universal.gradient and fa.training.Universal share."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fastadv import _checks, ops
from fastadv.attack import Attack, draw_seed, require_attack
from fastadv.perturbation import Perturbation
from fastadv.reference import compute_dtype
from fastadv.rules import Adam, Auto, Gradient, Momentum, State, Steepest
from fastadv.universal.penalty import Penalty


class Ascent:
    """A universal perturbation under way; it takes its shape and dtype from the first batch.

    The ball alone constrains delta. The box is x + delta's, and is met where delta is applied.
    Raises ValueError for a rule without a step size, and for a penalty with another than Gradient.
    """

    def __init__(
        self,
        attack: Attack,
        init: Perturbation | None = None,
        signs: bool = False,
        generator: torch.Generator | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        require_attack(attack)
        if penalty is not None and not isinstance(attack.rule, Gradient):
            raise ValueError(
                f"`penalty` goes with the rule Gradient, got {attack.rule}: other steps do not "
                "follow the objective's scale, and would drive delta to the radius or to zero"
            )
        if isinstance(attack.rule, Auto):
            raise ValueError("`attack` must have a rule with a step size, got Auto (apgd)")
        self.rule = attack.rule
        self.ball = attack.ball
        self.free = replace(attack.ball, bounds=None)
        self.signs, self.penalty = signs, penalty
        self.k = 0
        self.state: State = {}
        self._random, self._init, self._generator = attack.start == "uniform", init, generator
        self._delta: Tensor | None = None

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation as it is now, a copy. Raises RuntimeError before the first batch."""
        if self._delta is None:
            raise RuntimeError("there is no perturbation before the first batch")
        return Perturbation(self._delta.clone(), self.ball)

    def apply(self, x: Tensor) -> Tensor:  # (N, *shape)
        """clamp(x + delta) to the bounds."""
        if self._delta is None:
            self._delta = self._begin(x.detach())
            self.state = self.rule.start(self._delta[None])
        return Perturbation(self._delta, self.ball).apply(x)

    def _begin(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x[:1], memory_format=torch.contiguous_format)
        if not len(zeros):
            raise ValueError("the first batch must have a sample, got an empty one")
        if self._init is not None:
            given = self._init.delta.to(x.device, x.dtype)[None]
            _checks.like(given[0], "init", zeros[0], "x[0]")
            return self.free.project(given, zeros)[0]
        if self._random:
            return self.free.sample(zeros, draw_seed(self._generator))[0]
        return zeros[0]

    @torch.no_grad()
    def step(self, grads: Tensor, weights: Tensor | None = None) -> None:
        """One step along the gradients (N, *shape); `weights` (N,): 0 or False leaves one out."""
        assert self._delta is not None
        rule, delta = self.rule, self._delta
        dtype = compute_dtype(grads.dtype)
        weights = None if weights is None else weights.to(dtype)
        if isinstance(rule, Adam):
            self._adam(rule, grads, weights)
        elif isinstance(rule, (Steepest, Momentum)):
            momentum = isinstance(rule, Momentum)
            ops.universal_(
                delta, grads, ball=self.free, step_size=rule.size(self.k), weights=weights,
                velocity=self.state["velocity"][0] if momentum else None,
                momentum=rule.decay if isinstance(rule, Momentum) else 0.0,
                signs=self.signs, top=rule.top,
            )  # fmt: skip
        elif isinstance(rule, Gradient):
            self._raw(rule.size(self.k), grads, weights)
        self.k += 1

    def _raw(self, size: float, grads: Tensor, weights: Tensor | None) -> None:
        """Along the mean loss, then the penalty's own step, then into the ball."""
        assert self._delta is not None
        delta, penalty = self._delta, self.penalty
        ball = self.free if penalty is None else replace(self.free, radius=math.inf)
        ops.universal_(
            delta, grads, ball=ball, step_size=size / max(len(grads), 1), weights=weights,
            signs=self.signs, steepest=False,
        )  # fmt: skip
        if penalty is not None and len(grads):
            penalty.step_(delta, size)
            ops.project_(delta[None], torch.zeros_like(delta)[None], ball=self.free)

    def _adam(self, rule: Adam, grads: Tensor, weights: Tensor | None) -> None:
        assert self._delta is not None
        g = (torch.sign(grads) if self.signs else grads).to(compute_dtype(grads.dtype))
        mean = (g.mean(0) if weights is None else torch.tensordot(weights, g, 1) / len(g))[None]
        point = self._delta[None]
        radius = ops.per_sample(self.ball.radius, point, "radius", round_down=True)
        zeros = torch.zeros_like(point)
        rule.step_(self.state, self.k, point, mean.to(point.dtype), zeros, self.free, radius)
