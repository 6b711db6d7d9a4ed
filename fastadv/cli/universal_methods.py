"""The methods of python -m fastadv universal: from options to a perturbation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv import recipes, universal
from fastadv.balls import Ball
from fastadv.cli.arguments import Mistake
from fastadv.objectives import Objective
from fastadv.perturbation import Perturbation
from fastadv.universal.scenes import Target


class Batches:
    """x, or (x, y), on a device, in batches; shuffled anew each time, from one seed."""

    def __init__(
        self, x: Tensor, y: Tensor | None, size: int, device: torch.device, seed: int | None
    ) -> None:
        self.x, self.y, self.size, self.device = x, y, size, device
        self._order = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.x))
        if self._order is not None:
            order = torch.randperm(len(self.x), generator=self._order)
        for index in torch.split(order, self.size):
            x = self.x[index].to(self.device)
            yield x if self.y is None else (x, self.y[index].to(self.device))


@dataclass(frozen=True)
class Job:
    """What a method is given. state: where it keeps what it would go on from; objective: what
    `gradient` ascends; target, ignore_index: segmentation's."""

    ball: Ball
    model: nn.Module
    batches: Batches
    state: Path
    seed: int
    objective: Objective
    target: Target
    ignore_index: int

    @property
    def progress(self) -> bool:
        """Bars are for a person who watches."""
        return sys.stderr.isatty()


Options = dict[str, Any]


def _passes(search: Callable[..., Perturbation]) -> Callable[[Job, Options], Perturbation]:
    def run(job: Job, options: Options) -> Perturbation:
        return search(
            job.ball,
            job.model,
            job.batches,
            state=job.state,
            progress=job.progress,
            **options,
        )

    return run


def _gradient(job: Job, options: Options) -> Perturbation:
    step_size = options.pop("step_size", job.ball.radius / 10)
    attack = recipes.bim(job.ball, step_size, objective=job.objective)
    epochs = options.pop("passes", 5)
    return universal.gradient(
        attack, job.model, job.batches, epochs, state=job.state, progress=job.progress, **options
    )


def _segmentation(job: Job, options: Options) -> Perturbation:
    confidence = options.pop("confidence", 0.75)
    return universal.segmentation(
        job.ball, job.model, job.batches, target=job.target, ignore_index=job.ignore_index,
        confidence=None if confidence == "none" else confidence, state=job.state,
        progress=job.progress, **options,
    )  # fmt: skip


def _data_free(search: Callable[..., Perturbation]) -> Callable[[Job, Options], Perturbation]:
    def run(job: Job, options: Options) -> Perturbation:
        generator = torch.Generator().manual_seed(job.seed)
        shape = tuple(job.batches.x.shape[1:])
        return search(
            job.ball, job.model, shape, state=job.state, progress=job.progress, generator=generator,
            **options,
        )  # fmt: skip

    return run


@dataclass(frozen=True)
class Method:
    """run: finds the perturbation. takes: the options that it has. logits: of the models that it
    goes with, 2 for (N, classes), 4 for segmentation's (N, classes, H, W)."""

    run: Callable[[Job, Options], Perturbation]
    takes: tuple[str, ...]
    logits: tuple[int, ...] = (2, 4)


_SWEEP = ("passes", "fooling_rate", "count")
TARGETS = ("scene", "remove")
METHODS = {
    "moosavi": Method(_passes(universal.moosavi), _SWEEP, (2,)),
    "averaged": Method(_passes(universal.averaged), _SWEEP, (2,)),
    "gradient": Method(_gradient, ("passes", "step_size", "target")),
    "segmentation": Method(
        _segmentation, ("steps", "step_size", "batches", "tile", "confidence", *TARGETS), (4,)
    ),
    "fast-feature-fool": Method(_data_free(universal.fast_feature_fool), ("step_size", "steps")),
    "gd-uap": Method(_data_free(universal.gd_uap), ("step_size", "steps")),
}
_EVERY = tuple(sorted({name for method in METHODS.values() for name in method.takes}))


def options_of(given: argparse.Namespace) -> Options:
    """The options that were given; Mistake for one that the method, or --apply, does not have."""
    takes = METHODS[given.method].takes if given.method else TARGETS
    asked = f"--method {given.method}" if given.method else "--apply"
    options = {name: getattr(given, name) for name in _EVERY if getattr(given, name) is not None}
    for name in options:
        if name not in takes:
            raise Mistake(f"--{name.replace('_', '-')} does not go with {asked}")
    if len(options.keys() & set(TARGETS)) > 1:
        raise Mistake("--scene and --remove are two targets: give one of them")
    for name in ("norm", "radius"):
        value = getattr(given, name)
        if given.method and value is None:
            raise Mistake(f"--{name} must be given with {asked}")
        if not given.method and value is not None:
            raise Mistake(f"--{name} does not go with {asked}: the perturbation has its ball")
    return options
