"""Whole PGD attacks of other libraries, as released, at equal settings: linf, from x.

torchattacks 3.5 (PGD), foolbox 3.3 (LinfProjectedGradientDescentAttack) and
adversarial-robustness-toolbox 1.20 (ProjectedGradientDescentPyTorch); what is not installed is left
out. Their models are the plain one, or a compiled one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import gate

Craft = Callable[[Tensor, Tensor], Tensor]


def peers(
    model: nn.Module, ball: fa.Ball, size: float, steps: int, only: Collection[str] | None = None
) -> dict[str, Craft]:
    """The attacks of the libraries that are here, by their names; or of those in `only`."""
    found = {}
    for name, make in LIBRARIES.items():
        if only is not None and name not in only:
            continue
        if importlib.util.find_spec(name) is not None:
            found[name] = make(importlib.import_module(name), model, ball.radius, size, steps)
    return found


def robust_accuracy(
    name: str, model: nn.Module, x: Tensor, y: Tensor, batch: int, ball: fa.Ball, craft: Craft
) -> float:
    """By the eager model, of examples crafted in batches; a red gate if one leaves the ball by more
    than the others' roundings, 1e-5."""
    x_adv = torch.cat([craft(x[k : k + batch], y[k : k + batch]) for k in range(0, len(x), batch)])
    verdict = fa.verify(model, x, x_adv, y, ball, tolerance=1e-5)
    gate.inside(name, verdict.distance, ball.radius * (1 + 1e-5))
    return verdict.robust_accuracy


def _torchattacks(library: Any, model: nn.Module, radius: float, size: float, steps: int) -> Craft:
    attack = library.PGD(model, eps=radius, alpha=size, steps=steps, random_start=False)
    return lambda x, y: attack(x, y)


def _foolbox(library: Any, model: nn.Module, radius: float, size: float, steps: int) -> Craft:
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    options = {"abs_stepsize": size, "steps": steps, "random_start": False}
    attack = library.attacks.LinfProjectedGradientDescentAttack(**options)
    return lambda x, y: attack(wrapped, x, y, epsilons=radius)[1]


def _art(library: Any, model: nn.Module, radius: float, size: float, steps: int) -> Craft:
    attacks: Any = importlib.import_module("art.attacks.evasion")
    estimators: Any = importlib.import_module("art.estimators.classification")

    def craft(x: Tensor, y: Tensor) -> Tensor:
        classifier = estimators.PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0),
            device_type="cpu",
        )  # fmt: skip
        attack = attacks.ProjectedGradientDescentPyTorch(
            classifier, norm=math.inf, eps=radius, eps_step=size, max_iter=steps,
            batch_size=len(x), verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), functional.one_hot(y, 10).numpy()))

    return craft


LIBRARIES = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}
