"""Whole PGD attacks of other libraries, as released, at equal settings: linf, from x.

torchattacks 3.5 (PGD), foolbox 3.3 (LinfProjectedGradientDescentAttack),
adversarial-robustness-toolbox 1.20 (ProjectedGradientDescentPyTorch) and adv-lib 0.2.8 (pgd_linf);
what is not installed is left out. Their models are the plain one, or a compiled one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType
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


def _adv_lib(library: Any, model: nn.Module, radius: float, size: float, steps: int) -> Craft:
    attack = partial(
        _adv_lib_file(library).pgd_linf, steps=steps, random_init=False, restarts=1,
        absolute_step_size=size,
    )  # fmt: skip
    return lambda x, y: attack(model, x, y, radius)


def _adv_lib_file(library: Any) -> ModuleType:
    """The file of its PGD alone, as released. The other attacks beside it import torchvision, which
    has to match torch's build; and this one imports visdom, a server of plots that it never calls,
    which setuptools from 82 on cannot build: an empty module stands there meanwhile."""
    path = Path(library.__file__).parent / "attacks" / "projected_gradient_descent.py"
    spec = importlib.util.spec_from_file_location("adv_lib_pgd", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    there = importlib.util.find_spec("visdom") is not None
    if not there:
        sys.modules["visdom"] = ModuleType("visdom")
    try:
        spec.loader.exec_module(module)
    finally:
        if not there:
            del sys.modules["visdom"]
    return module


LIBRARIES = {
    "torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art, "adv_lib": _adv_lib,
}  # fmt: skip
# It gives back the last iterate that fooled, of those before the last step: at as many gradients,
# another robust accuracy than that of the last iterate.
ANY_ITERATE = ("adv_lib",)


def of_last_iterates(accuracy: dict[str, float]) -> list[float]:
    """The robust accuracies that are to agree."""
    return [found for name, found in accuracy.items() if name not in ANY_ITERATE]
