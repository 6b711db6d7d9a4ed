"""Pass after pass over the data, until enough are fooled: what moosavi and averaged share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastadv import _checks, ops
from fastadv.attack import Attack, draw_seed
from fastadv.balls import Ball, require_ball
from fastadv.deepfool import DeepFool, Search
from fastadv.model import Model, crafting, held
from fastadv.perturbation import Perturbation
from fastadv.reference import box
from fastadv.universal.batches import Batch, require_loader, samples
from fastadv.universal.ranks import require_whole
from fastadv.universal.rates import Rates, predictions, rates_of
from fastadv.universal.state import State, named, require_at_most

COUNTS = ("fooled", "wrong")

Inner = DeepFool | Attack


@dataclass(frozen=True)
class Pass:
    """A pass that is done: its number from 1, v after it, its rates, and how often v was updated.

    rates: of `perturbation`, over the validation loader where there is one, else over the loader.
    """

    number: int
    perturbation: Perturbation
    rates: Rates
    updates: int


@dataclass(frozen=True)
class Options:
    """What a run of passes is asked for: see moosavi."""

    fooling_rate: float
    passes: int
    count: str
    validation: Iterable[Batch] | None
    state: str | os.PathLike[str] | None
    progress: bool
    on_pass: Callable[[Pass], None] | None

    def __post_init__(self) -> None:
        if not 0 < self.fooling_rate <= 1:
            raise ValueError(f"`fooling_rate` must be in (0, 1], got {self.fooling_rate}")
        if self.passes < 1:
            raise ValueError(f"`passes` must be at least 1, got {self.passes}")
        if self.count not in COUNTS:
            raise ValueError(f"`count` must be one of {COUNTS}, got {self.count!r}")
        require_loader(self.validation, "validation")
        require_whole(self.validation, "validation")


class Delta:
    """v, a perturbation under way; it takes shape and dtype from the first batch."""

    def __init__(self, ball: Ball, init: Perturbation | None) -> None:
        self.ball, self._init = require_ball(ball), init
        self.free = replace(ball, bounds=None)  # the box is x + v's
        self.value = torch.empty(0)  # (1, *shape)
        self.seed, self.solved = 0, 0  # of an inner attack's starts, and so many of them used

    @property
    def perturbation(self) -> Perturbation:
        """v as it is now, a copy."""
        return Perturbation(self.value[0].clone(), self.ball)

    def begin(self, x: Tensor) -> None:
        """v for data like x, where it is not there yet: zeros, or `init` in the ball."""
        if self.value.numel():
            _checks.like(x[:1], "x", self.value, "the first batch")
            return
        self.value = torch.zeros_like(x[:1], memory_format=torch.contiguous_format)
        if self._init is not None:
            given = self._init.delta.detach().to(x.device, x.dtype)[None]
            _checks.like(given[0], "init", self.value[0], "x[0]")
            self.value = self.free.project(given, self.value)

    def at(self, x: Tensor) -> Tensor:  # (N, *shape)
        """x + v, in the ball's bounds if it has any."""
        point = x + self.value
        bounds = self.ball.bounds_for(x)
        if bounds is None:
            return point
        lower, upper = (bound.to(x.dtype) for bound in box(bounds, x))
        return torch.maximum(torch.minimum(point, upper), lower)

    def add_(self, dr: Tensor) -> None:  # (N, *shape)
        """v <- P(v + sum_i dr_i)."""
        ops.universal_(self.value[0], dr, ball=self.free, step_size=1.0, steepest=False)


def inner_of(inner: object, ball: Ball) -> Inner:
    """The inner solver, in the box that x + v has. Raises TypeError for what is none."""
    if isinstance(inner, DeepFool):
        return replace(inner, bounds=ball.bounds)  # its mode plays no part: the loop's is eval
    if isinstance(inner, Attack):
        return replace(inner, ball=replace(inner.ball, bounds=ball.bounds))
    raise TypeError(f"`inner` must be a DeepFool or an Attack, got {inner!r}")


def seed_for(inner: Inner, generator: torch.Generator | None) -> int:
    """The one draw of a run, where the inner solver starts at random."""
    return draw_seed(generator) if isinstance(inner, Attack) and inner.start == "uniform" else 0


def solve(inner: Inner, model: Model, delta: Delta, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(dr (N, *shape), found (N,)): x + v + dr fools the model where it was found. For a DeepFool
    dr is 0 where x + v does already; an attack is to be asked for the others alone."""
    origin = delta.at(x)
    if isinstance(inner, DeepFool):
        search = Search(inner, origin, y, checked=True)
        search.climb(model)
        return search.x_adv - origin, search.success
    # Every start is a function of the seed and of how many there were before.
    generator = torch.Generator().manual_seed(delta.seed)
    found = inner.run(model, origin, y, generator=generator, offset=delta.solved)
    delta.solved += len(x)
    return found.x_adv - origin, found.success


# (v, x, labels (N,)) -> (how many were fooled when they were met, updates): one batch of a pass.
Visit = Callable[[Delta, Tensor, Tensor], tuple[int, int]]


class Passes:
    """The loop: passes over the loader, each followed by its rates; the best v is kept."""

    def __init__(
        self, name: str, model: Model, loader: Iterable[Batch], delta: Delta, options: Options,
        settings: dict[str, object],
    ) -> None:  # fmt: skip
        require_loader(loader)
        require_whole(loader)
        self.name, self.model, self.loader = name, model, loader
        self.delta, self.options = delta, options
        self.judge = loader if options.validation is None else options.validation
        fixed = {"algorithm": name, "ball": repr(delta.ball), "count": options.count}
        for key, value in settings.items():
            fixed[key] = repr(named(value) if isinstance(value, Attack) else value)
        self._state = State(options.state, fixed)
        self.done, self.seen, self.rate = 0, 0, -1.0
        self.best: Tensor | None = None

    def run(self, visit: Visit) -> Perturbation:
        """Passes until the rate is reached or their number is; gives the best v."""
        options = self.options
        self._load()
        with torch.no_grad(), crafting(self.model, "eval"):
            while self.done < options.passes and self.rate < options.fooling_rate:
                with held(self.model):
                    updates = self._pass(visit)
                found = self.delta.perturbation
                rates = self._rates(found)
                rate = rates.fooled if options.count == "fooled" else rates.wrong
                if rate is None:
                    raise ValueError("`validation` must give labels (x, y) for count='wrong'")
                if rate > self.rate:
                    self.rate, self.best = rate, found.delta
                self.done += 1
                self._save()
                if options.on_pass is not None:
                    options.on_pass(Pass(self.done, found, rates, updates))
        assert self.best is not None
        return Perturbation(self.best, self.delta.ball)

    def _pass(self, visit: Visit) -> int:
        fooled, updates, seen = 0, 0, 0
        title = f"{self.name} {self.done + 1}/{self.options.passes}"
        with tqdm(
            desc=title, total=self.seen or None, unit=" samples", disable=not self.options.progress
        ) as bar:
            for x, y in samples(self.loader, self.delta.ball, again=self.done > 0):
                self.delta.begin(x)
                hits, more = visit(self.delta, x, self._labels(x, y))
                fooled, updates, seen = fooled + hits, updates + more, seen + len(x)
                bar.set_postfix(fooled=f"{fooled / seen:.3f}", updates=updates, refresh=False)
                bar.update(len(x))
        self.seen = seen
        return updates

    def _rates(self, found: Perturbation) -> Rates:
        own = self.options.validation is None
        name = "loader" if own else "validation"
        return rates_of(found, self.model, self.judge, name, again=own or self.done > 0)

    def _labels(self, x: Tensor, y: Tensor | None) -> Tensor:
        """What the model has to leave for x to be fooled (N,)."""
        clean = predictions(self.model, x)
        if self.options.count == "fooled":
            return clean
        if y is None:
            raise ValueError("`loader` must give labels (x, y) for count='wrong', got x alone")
        _checks.like(y.long(), "y", clean, "the predictions")
        return y.long()

    def _save(self) -> None:
        assert self.best is not None
        facts = {"done": self.done, "rate": self.rate, "seen": self.seen}
        facts |= {"seed": self.delta.seed, "solved": self.delta.solved}
        tensors = {"delta": self.delta.value, "best": self.best[None]}
        self._state.keep(tensors, facts)

    def _load(self) -> None:
        """Goes on from the state file, if there is one.

        The passes that are done are read again, not computed: a loader that shuffles, seeded as
        it was, then gives the next pass the order that it would have had.
        """
        if (kept := self._state.kept()) is None:
            return
        tensors, facts = kept
        require_at_most(facts["done"], self.options.passes, "passes")
        self.done, self.rate, self.seen = facts["done"], facts["rate"], facts["seen"]
        first: Tensor | None = None
        for k in range(self.done):
            for x, _ in samples(self.loader, self.delta.ball, again=k > 0):
                first = x if first is None else first
            for _ in self.judge:
                pass
        assert first is not None
        self.delta.begin(first)
        for name, tensor in tensors.items():
            tensors[name] = _checks.like(
                tensor.to(first.device), f"state[{name}]", self.delta.value, "x[:1]"
            )
        self.delta.value, self.best = tensors["delta"], tensors["best"][0]
        self.delta.seed, self.delta.solved = facts["seed"], facts["solved"]
