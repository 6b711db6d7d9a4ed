"""Accuracy under attack, and how it falls with the radius."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastadv._bar import along
from fastadv.attack import Attack
from fastadv.confusion import Confusion
from fastadv.evaluation.names import label
from fastadv.evaluation.report import Report, share
from fastadv.evaluation.scores import (
    Adversary,
    Clean,
    Scores,
    clean,
    craft,
    objective_of,
    score,
    total,
)
from fastadv.model import Model
from fastadv.objectives import ObjectiveLike, as_objective, cross_entropy
from fastadv.perturbation import Perturbation
from fastadv.rules import Rule

Adversaries = Adversary | Sequence[Adversary] | Mapping[str, Adversary]
Loader = Iterable[Sequence[Tensor]]


def evaluate(
    model: Model,
    loader: Loader,
    attacks: Adversaries = (),
    *,
    seed: int = 0,
    objective: ObjectiveLike = cross_entropy,
    progress: bool = False,
) -> Report:
    """Accuracy of `model` on x, under each attack, and under the worst of them sample by sample.

    loader: batches (x, y), gone through once, and moved to the model's device. attacks: Attacks or
    Perturbations, one, many, by name, or none for the clean accuracy; they must take the same kind
    of labels. Every x_adv is re-scored by `model` itself in eval mode (fa.verify), never by what
    the attack reports.
    seed: of the random starts, which depend on it and the sample's index, not on the batches.
    objective: what judges Perturbations, as in fa.pixels(ignore_index=11); Attacks bring their own.

    Of segmentation an image is wrong where the objective's share of its pixels is (fa.pixels), and
    the report has pixel accuracy and mIoU besides.

    Raises ValueError for an empty loader, TypeError for batches that are not (x, y), and what the
    attacks raise.
    """
    adversaries = _named(attacks)
    kind = as_objective(objective)
    if adversaries:
        kind = objective_of(next(iter(adversaries.values())), kind)
    wrong: list[Tensor] = []
    matrices: list[Confusion | None] = []
    parts: dict[str, list[Scores]] = {name: [] for name in adversaries}
    for x, y, offset in _batches(model, loader, progress):
        before = clean(model, x, y, kind)
        wrong.append(before.wrong)
        matrices.append(before.confusion)
        for name, adversary in adversaries.items():
            parts[name].append(_attacked(adversary, model, x, y, before, seed, offset, kind))
    mistakes = torch.cat(wrong)
    scores = {name: (adversaries[name], Scores.join(part)) for name, part in parts.items()}
    return Report.of(mistakes, scores, seed, len(mistakes), pixels=total(matrices))


def accuracy_by_radius(
    model: Model,
    loader: Loader,
    attack: Attack,
    radii: Sequence[float],
    *,
    seed: int = 0,
    progress: bool = False,
) -> tuple[float, ...]:
    """The accuracy under `attack` at each radius, its steps scaled along; at 0 the clean accuracy.

    Each radius is attacked afresh: accuracy that rises with it shows an attack that is too weak.
    Raises as `evaluate` does.
    """
    attacks = [with_radius(attack, radius) for radius in radii]
    wrong: list[list[Tensor]] = [[] for _ in radii]
    for x, y, offset in _batches(model, loader, progress):
        before = clean(model, x, y, objective_of(attack))
        for one, column in zip(attacks, wrong, strict=True):
            if one.ball.radius == 0:
                column.append(before.wrong)
            else:
                column.append(_attacked(one, model, x, y, before, seed, offset).wrong)
    return tuple(1 - share(torch.cat(column)) for column in wrong)


def with_radius(attack: Attack, radius: float) -> Attack:
    """The same attack in a ball of another radius, its step sizes scaled along."""
    rule = attack.rule
    if isinstance(rule, Rule) and attack.ball.radius:
        scale, size = radius / attack.ball.radius, rule.step_size
        scaled = tuple(scale * s for s in size) if isinstance(size, tuple) else scale * size
        rule = replace(rule, step_size=scaled)
    return replace(attack, ball=replace(attack.ball, radius=radius), rule=rule)


def _attacked(
    adversary: Adversary,
    model: Model,
    x: Tensor,
    y: Tensor,
    before: Clean,
    seed: int,
    offset: int,
    objective: ObjectiveLike = cross_entropy,
) -> Scores:
    x_adv, forwards, seconds = craft(adversary, model, x, y, seed=seed, offset=offset)
    scores = score(adversary, model, x, x_adv, y, before, objective=objective)
    return replace(scores, seconds=seconds, forwards=forwards)


def _named(attacks: Adversaries) -> dict[str, Adversary]:
    """Each under a name of its own."""
    named: dict[str, Adversary] = {}
    if isinstance(attacks, Mapping):
        named |= attacks
    else:
        for one in [attacks] if isinstance(attacks, (Attack, Perturbation)) else attacks:
            name = label(one) if isinstance(one, (Attack, Perturbation)) else ""
            copies = sum(other == name or other.startswith(f"{name} (") for other in named)
            named[f"{name} ({copies + 1})" if copies else name] = one
    for one in named.values():
        if not isinstance(one, (Attack, Perturbation)):
            raise TypeError(
                f"`attacks` must hold Attacks or Perturbations, got {type(one).__name__}"
            )
    return named


def _batches(model: Model, loader: Loader, progress: bool) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(x, y, index of the first sample) on the model's device."""
    device = device_of(model)
    offset = 0
    for batch in along(loader, desc="evaluate", unit="batch", disable=not progress):
        x, y = _pair(batch)
        if len(x):
            yield (x, y, offset) if device is None else (x.to(device), y.to(device), offset)
        offset += len(x)
    if not offset:
        raise ValueError("`loader` must give at least one sample, got none")


def _pair(batch: object) -> tuple[Tensor, Tensor]:
    what = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        what += " of " + (", ".join(type(part).__name__ for part in batch) or "nothing")
        if len(batch) == 2 and isinstance(batch[0], Tensor) and isinstance(batch[1], Tensor):
            return batch[0], batch[1]
    raise TypeError(f"`loader` must give batches (x, y) of two tensors, got a {what}")


def device_of(model: Model) -> torch.device | None:
    """Where the model's first parameter is; None for what has none."""
    if not isinstance(model, nn.Module):
        return None
    first = next(model.parameters(), None)
    return None if first is None else first.device
