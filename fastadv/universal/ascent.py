"""One delta, climbing: what fa.universal.gradient and fa.training.Universal share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastadv import _checks, ops
from fastadv.attack import Attack, draw_seed, require_attack
from fastadv.balls import Linf
from fastadv.perturbation import Perturbation
from fastadv.placement import alike, gather
from fastadv.reference import compute_dtype, rows
from fastadv.rules import Adam, Auto, Gradient, Momentum, State, Steepest
from fastadv.universal.form import Form
from fastadv.universal.penalty import Penalty
from fastadv.universal.ranks import Ranks


class Ascent:
    """A universal perturbation under way; it takes its shape and dtype from the first batch.

    The ball alone constrains delta. The box is x + delta's, and is met where delta is applied.
    With several ranks each gives its own samples' gradients, and all take the step of the sum.
    Raises ValueError for a rule without a step size, for a penalty with another than Gradient, and
    for tiles in another ball than linf.
    """

    def __init__(
        self,
        attack: Attack,
        init: Perturbation | None = None,
        signs: bool = False,
        generator: torch.Generator | None = None,
        penalty: Penalty | None = None,
        form: Form | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        require_attack(attack)
        if penalty is not None and not isinstance(attack.rule, Gradient):
            raise ValueError(
                f"`penalty` goes with the rule Gradient, got {attack.rule}: other steps do not "
                "follow the objective's scale, and would drive delta to the radius or to zero"
            )
        if isinstance(attack.rule, Auto):
            raise ValueError("`attack` must have a rule with a step size, got Auto (apgd)")
        self.form = form or Form()
        if isinstance(self.form.place, str) and not isinstance(attack.ball, Linf):
            raise ValueError(
                f"`delta_shape` without `offset` goes with Linf, got {attack.ball}: tiles together "
                "are longer than one"
            )
        self.rule, self.ball = attack.rule, attack.ball
        self.free = replace(attack.ball, bounds=None)
        self.signs, self.penalty = signs, penalty
        self.ranks = ranks or Ranks()
        self.seen, self.fooled = 0, 0  # of all ranks
        self._random, self._init, self._generator = attack.start == "uniform", init, generator
        self._delta: Tensor | None = None  # (K, *shape), K = 1 but for one a class
        self._states: list[State] = []  # a row's
        self._k: list[int] = []  # steps of a row

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation as it is now, a copy. Raises RuntimeError before the first batch."""
        if self._delta is None:
            raise RuntimeError("there is no perturbation before the first batch")
        return self._of(self._delta.clone())

    @property
    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """What `go_on` needs: delta, the rule's state and the steps of each row."""
        assert self._delta is not None
        each = enumerate(self._states)
        rule = {f"{j}.{name}": value for j, one in each for name, value in one.items()}
        return {"delta": self._delta, **rule}, {"k": self._k}

    def go_on(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """After the first batch: from the `state` of another, which had the same settings."""
        if self._delta is None:
            self.ranks.require_alike(None)  # raises, here and there
            raise ValueError("`loader` must give batches in every epoch, got none")
        for name, own in self.state[0].items():
            kept = tensors[name].to(own.device)
            own.copy_(_checks.like(kept, f"state[{name}]", own, "the first batch"))
        self._k = list(facts["k"])

    def apply(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # (N, *shape)
        """clamp(x + delta) to the bounds, to a rounding; y (N,) chooses where there is one delta a
        class. x is checked already."""
        if self._delta is None:
            self.ranks.require_alike(self.form.facts(x) if len(x) else None)
            self._delta = self._begin(x.detach(), self.form.fitted(x.shape[1:]))
            self.ranks.share_(self._delta)
            each = [self._delta[j : j + 1] for j in range(len(self._delta))]
            self._states, self._k = [self.rule.start(row) for row in each], [0] * len(each)
        return self._of(self._delta).near(x, y)

    def _of(self, delta: Tensor) -> Perturbation:
        many = self.form.classes is not None
        return Perturbation(delta if many else delta[0], self.ball, self.form.place, many)

    def _begin(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not len(x):
            raise ValueError("the first batch must have a sample, got an empty one")
        zeros = x.new_zeros(self.form.classes or 1, *shape)
        if self._init is not None:
            whole = self.form.place is None and self.form.classes is None
            own, name = self._of(zeros), "x[0]" if whole else "the delta asked for"
            given = self._init.delta.detach().to(x.device, x.dtype)
            _checks.like(given, "init", own.delta, name)
            placed = alike(self._init.place, own.place)
            if not placed or self._init.per_class != own.per_class:
                raise ValueError(f"`init` must be placed like {name}, got {self._init}")
            return self.free.project(given.view_as(zeros), zeros)
        if self._random:
            return self.free.sample(zeros, draw_seed(self._generator))
        return zeros

    @torch.no_grad()
    def step(
        self, grads: Tensor, weights: Tensor | None = None, y: Tensor | None = None,
        fooled: int = 0, scale: float = 1.0, finite: bool = False,
    ) -> None:  # fmt: skip
        """One step along the gradients (N, *shape); `weights` (N,): 0 or False leaves one out.

        y: as in apply. fooled: samples, for the tally. scale: what other ranks' gradients are to
        be weighed with this one's by. finite: takes no step where they are not.
        """
        assert self._delta is not None
        grads = gather(grads, self._delta.shape[1:], self.form.place)
        weights = None if weights is None else weights.to(compute_dtype(grads.dtype))
        if self.ranks.count > 1:
            self._together(self._sums(grads, weights, y, scale), (1, len(grads), fooled), finite)
            return
        self.seen, self.fooled = self.seen + len(grads), self.fooled + fooled
        if finite and not bool(torch.isfinite(grads.sum(dtype=torch.float64))):
            return
        for j, g, w in self._split(grads, weights, y):
            self._move(j, g, w, len(g), self.signs)

    def idle(self) -> bool:
        """For a rank without a further batch: takes the others' step. False: no rank had one."""
        if self.ranks.count == 1:
            return False
        if self._delta is None:
            self.ranks.require_alike(None)  # raises, here and there
        assert self._delta is not None
        nothing = torch.zeros(len(self._delta), self._delta[0].numel() + 1, dtype=torch.float64)
        return self._together(nothing.to(self._delta.device), (0, 0, 0), False)

    def _split(
        self, grads: Tensor, weights: Tensor | None, y: Tensor | None
    ) -> list[tuple[int, Tensor, Tensor | None]]:
        """(row, its samples' gradients, their weights), for the rows that have a sample."""
        if self.form.classes is None:
            return [(0, grads, weights)]
        assert y is not None
        return [
            (j, grads[y == j], None if weights is None else weights[y == j])
            for j in torch.unique(y).tolist()
        ]

    def _sums(
        self, grads: Tensor, weights: Tensor | None, y: Tensor | None, scale: float
    ) -> Tensor:  # (K, numel + 1)
        """This rank's sum a row in float64, and of how many samples."""
        assert self._delta is not None
        sums = grads.new_zeros(len(self._delta), self._delta[0].numel() + 1, dtype=torch.float64)
        for j, g, w in self._split(grads, weights, y):
            g = torch.sign(g) if self.signs else g
            total = (g if w is None else g * rows(w, g)).sum(0, dtype=torch.float64)
            sums[j, :-1], sums[j, -1] = total.flatten() * scale, len(g)
        return sums

    @torch.no_grad()
    def _together(self, sums: Tensor, tally: tuple[int, int, int], finite: bool) -> bool:
        """The step of all ranks' sums: one reduction, of delta's size and a few counts."""
        assert self._delta is not None
        dtype = self._delta.dtype
        everyone = self.ranks.sum_(torch.cat([sums.flatten(), sums.new_tensor(tally)]))
        steppers, seen, fooled = (int(n) for n in everyone[-3:])
        self.seen, self.fooled = self.seen + seen, self.fooled + fooled
        if finite and not bool(torch.isfinite(everyone).all()):
            return steppers > 0
        for j, row in enumerate(everyone[:-3].view_as(sums)):
            total, by = _in(row[:-1], dtype)
            grads = total.view(1, *self._delta.shape[1:])
            self._move(j, grads, None, int(row[-1]), False, by)
        return steppers > 0

    def _move(
        self, j: int, grads: Tensor, weights: Tensor | None, count: int, signs: bool, by: float = 1
    ) -> None:
        """The rule's step of delta's row j along by * grads, which are of `count` samples."""
        assert self._delta is not None
        if not count:
            return
        rule, delta, k = self.rule, self._delta[j], self._k[j]
        self._k[j] += 1
        if isinstance(rule, Adam):
            g = (torch.sign(grads) if signs else grads).to(compute_dtype(grads.dtype))
            total = g.sum(0) if weights is None else torch.tensordot(weights, g, 1)
            self._adam(rule, j, k, total * (by / count))
        elif isinstance(rule, (Steepest, Momentum)):
            momentum = isinstance(rule, Momentum)
            ops.universal_(
                delta, grads, ball=self.free, step_size=rule.size(k), weights=weights,
                velocity=self._states[j]["velocity"][0] if momentum else None,
                momentum=rule.decay if isinstance(rule, Momentum) else 0.0,
                signs=signs, top=rule.top,
            )  # fmt: skip
        elif isinstance(rule, Gradient):
            self._raw(delta, rule.size(k), by / count, grads, weights, signs)

    def _raw(
        self, delta: Tensor, size: float, by: float, grads: Tensor, weights: Tensor | None,
        signs: bool,
    ) -> None:  # fmt: skip
        """Along the mean loss, then the penalty's own step, then into the ball."""
        penalty = self.penalty
        ball = self.free if penalty is None else replace(self.free, radius=math.inf)
        ops.universal_(
            delta, grads, ball=ball, step_size=size * by, weights=weights, signs=signs,
            steepest=False,
        )  # fmt: skip
        if penalty is not None:
            penalty.step_(delta, size)
            ops.project_(delta[None], torch.zeros_like(delta)[None], ball=self.free)

    def _adam(self, rule: Adam, j: int, k: int, mean: Tensor) -> None:
        assert self._delta is not None
        point = self._delta[j][None]
        radius = ops.per_sample(self.ball.radius, point, "radius", round_down=True)
        zeros = torch.zeros_like(point)
        g = mean[None].to(point.dtype)
        rule.step_(self._states[j], rule.numbers(k), point, g, zeros, self.free, radius)


def _in(total: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """(t in `dtype`, by): total is by * t. In half precision t reaches up to 2^15."""
    if compute_dtype(dtype) is dtype:
        return total.to(dtype), 1.0
    largest = float(total.abs().max())
    if not 0 < largest < math.inf:
        return total.to(dtype), 1.0
    by = 2.0 ** (math.ceil(math.log2(largest)) - 15)
    return (total / by).to(dtype), by
