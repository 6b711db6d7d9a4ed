"""Without data: Fast Feature Fool (Mopuri et al. 1707.05572) and GD-UAP (Mopuri et al. 1801.08092).

Both look for the v that excites a network's layers the most, on the thought that whatever saturates
the features of v alone leaves little of x in those of x + v.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastadv import _checks, ops
from fastadv.attack import draw_seed
from fastadv.balls import Ball, require_ball
from fastadv.model import Model, crafting
from fastadv.perturbation import Perturbation
from fastadv.problem import NO_GRADIENT, output
from fastadv.rules import Adam
from fastadv.universal.batches import Batch, require_loader
from fastadv.universal.layers import NONE_RAN, Layers, chosen_layers, layer_names, watched
from fastadv.universal.rates import rates_of
from fastadv.universal.state import Kept, State

_SETTINGS = ("algorithm", "ball", "rule", "steps", "layers", "patience")
_KEPT = 100  # steps from one state to the next
_PERIOD = 300  # Fast Feature Fool halves v so often
_SATURATED, _STILL = 0.5, 1e-5  # GD-UAP does at such a share of |v| = radius that hardly changes


def fast_feature_fool(
    ball: Ball,
    model: nn.Module,
    shape: Sequence[int],
    *,
    layers: Layers = None,
    step_size: float | None = None,
    steps: int = 3000,
    patience: int = 5,
    validation: Iterable[Batch] | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """argmax over v in the ball of the sum over the layers of log mean |layer(v)|, by Adam.

    model: is called on v itself, (1, *shape), in eval mode. layers: modules, or names of them
    (`model.named_modules()`); None: every convolution. step_size: Adam's; None: a hundredth of the
    radius, as published. Every 300 steps v is halved, which lets it move again, and the best v so
    far is kept: by the fooling rate over `validation` (report that it was used), else by the
    objective. patience: stops after so many halvings without a better one. state: a file, written
    every 100 steps; a run that finds it goes on from it, to the same result. generator: for the
    uniform start, one draw.

    Raises TypeError or ValueError for a model that is no nn.Module, layers that it does not have or
    does not run, a `state` of another run, and numbers that are none.
    """
    search = _Search("fast feature fool", _mean, _every_period)
    return search.run(
        ball, model, shape, layers, step_size, steps, patience, validation, state, progress,
        generator,
    )  # fmt: skip


def gd_uap(
    ball: Ball,
    model: nn.Module,
    shape: Sequence[int],
    *,
    layers: Layers = None,
    step_size: float | None = None,
    steps: int = 3000,
    patience: int = 10,
    validation: Iterable[Batch] | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """argmax over v in the ball of the sum over the layers of log (||layer(v)||^2 / 2), by Adam.

    v is halved once more than half of it lies at the radius and that share changes by less than
    1e-5 in a step. The rest, errors included, is fast_feature_fool's.
    """
    search = _Search("gd-uap", _energy, _saturated)
    return search.run(
        ball, model, shape, layers, step_size, steps, patience, validation, state, progress,
        generator,
    )  # fmt: skip


def _mean(features: Tensor) -> Tensor:
    return features.abs().mean().log()


def _energy(features: Tensor) -> Tensor:
    return (features.square().sum() / 2).log()


def _every_period(k: int, share: float, before: float) -> bool:
    return (k + 1) % _PERIOD == 0


def _saturated(k: int, share: float, before: float) -> bool:
    return share > _SATURATED and abs(share - before) < _STILL


@dataclass(frozen=True)
class _Search:
    """What is maximised of a layer, and when v is halved: (step, saturated share, that before)."""

    name: str
    term: Callable[[Tensor], Tensor]
    halves: Callable[[int, float, float], bool]

    @torch.inference_mode(False)
    def run(
        self, ball: Ball, model: nn.Module, shape: Sequence[int], layers: Layers,
        step_size: float | None, steps: int, patience: int, validation: Iterable[Batch] | None,
        state: str | os.PathLike[str] | None, progress: bool, generator: torch.Generator | None,
    ) -> Perturbation:  # fmt: skip
        for name, count in (("steps", steps), ("patience", patience)):
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}")
        require_loader(validation, "validation")
        free = replace(require_ball(ball), bounds=None)
        chosen = chosen_layers(model, layers)
        zeros = _like(model, shape)
        v = free.sample(zeros, draw_seed(generator))
        rule = Adam(ball.radius / 100 if step_size is None else step_size)
        moments, radius = rule.start(v), ops.per_sample(ball.radius, v, "radius", round_down=True)
        climb = _Climb(v, moments, v.clone())
        settings = (self.name, ball, rule, steps, layer_names(model, layers), patience)
        kept = State(state, dict(zip(_SETTINGS, map(str, settings), strict=True)))
        climb.go_on(kept.kept())
        bar = tqdm(range(climb.done, steps), self.name, steps, initial=climb.done,
                   disable=not progress)  # fmt: skip
        with torch.no_grad(), crafting(model, "eval"), watched(chosen, self.term) as terms:
            for k in bar:
                if climb.waits >= patience:
                    break
                value, grad = _gradient(model, v, terms)
                rule.step_(moments, rule.numbers(k), v, grad, zeros, free, radius)
                before = climb.share
                climb.share = float((v.abs() >= 0.999 * radius).double().mean())
                bar.set_postfix(
                    objective=f"{value:.2f}", saturated=f"{climb.share:.2f}", refresh=False
                )
                if self.halves(k, climb.share, before) or k == steps - 1:
                    climb.take(_score(ball, model, v, terms, validation))
                    v.mul_(0.5)
                climb.done = k + 1
                if climb.done % _KEPT == 0 or climb.done == steps:
                    kept.keep(climb.tensors, climb.facts)
        return Perturbation(climb.best[0].clone(), ball)


@dataclass
class _Climb:
    """v and Adam's moments under way; the best v, and how often in a row none was better."""

    v: Tensor
    moments: dict[str, Tensor]
    best: Tensor
    score: float = -math.inf
    waits: int = 0
    share: float = 0.0  # of v at the radius
    done: int = 0  # steps

    def take(self, score: float) -> None:
        """Keeps v if it is better."""
        if score > self.score:
            self.best, self.score, self.waits = self.v.clone(), score, 0
        else:
            self.waits += 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"v": self.v, "best": self.best, **self.moments}

    @property
    def facts(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("score", "waits", "share", "done")}

    def go_on(self, kept: Kept | None) -> None:
        """From there, in place."""
        if kept is None:
            return
        for name, own in self.tensors.items():
            there = kept[0][name].to(own.device)
            own.copy_(_checks.like(there, f"state[{name}]", own, "shape"))
        for name in self.facts:
            setattr(self, name, kept[1][name])


def _like(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Zeros (1, *shape), where the model's parameters are and as wide."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *shape, dtype=first.dtype, device=first.device)


def _value(model: Model, v: Tensor, terms: list[Tensor]) -> Tensor:
    terms.clear()
    output(model, v.clone())  # a model may write on its input
    if not terms:
        raise ValueError(NONE_RAN)
    value = torch.stack(terms).sum()
    if bool(value.isnan()):
        raise ValueError("`model` gave NaN: its layers' outputs are no numbers")
    return value


def _score(
    ball: Ball, model: Model, v: Tensor, terms: list[Tensor], validation: Iterable[Batch] | None
) -> float:
    """How good v is: the fooling rate over `validation`, else the objective."""
    if validation is None:
        return float(_value(model, v, terms))
    uap = Perturbation(v[0], ball)  # alone: one rank may run this, or each its own
    return rates_of(uap, model, validation, "validation", again=True).fooled


def _gradient(model: Model, v: Tensor, terms: list[Tensor]) -> tuple[float, Tensor]:
    """(the objective, its gradient (1, *shape)) at v."""
    with torch.enable_grad():
        leaf = v.clone().requires_grad_()
        value = _value(model, leaf, terms)
        if not value.requires_grad:
            raise ValueError(NO_GRADIENT)
        (grad,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if grad is None:
        raise ValueError(NO_GRADIENT)
    terms.clear()
    return float(value.detach()), grad
