"""python -m fastadv attack: a person's own model and data."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastadv import recipes
from fastadv.attack import Attack
from fastadv.balls import L1, L2, Ball, Linf
from fastadv.cli import attack_options, data, models
from fastadv.cli.arguments import Commands, Mistake, Parser, console, naming
from fastadv.cli.results import Part, Results, join
from fastadv.cli.task import Narrow, Task, check
from fastadv.evaluation.names import label
from fastadv.evaluation.report import Report
from fastadv.model import normalized
from fastadv.objectives import BY_NAME, Objective, pixels

BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1}

# Each recipe, and the options that it has beside the ball's and Attack's own.
RECIPES: dict[str, tuple[Callable[..., Attack], tuple[str, ...]]] = {
    "pgd": (recipes.pgd, ("step_size", "steps")),
    "apgd": (recipes.apgd, ("steps",)),
    "bim": (recipes.bim, ("step_size", "steps")),
    "mi_fgsm": (recipes.mi_fgsm, ("step_size", "steps")),
    "fgsm": (recipes.fgsm, ()),
}


def add(commands: Commands[Parser]) -> None:
    """Adds the command to the command line."""
    attack_options.add(commands).set_defaults(run=run, command="attack")


def run(given: argparse.Namespace) -> int:
    """Checks everything, attacks batch by batch, writes and prints the results."""
    attack = make_attack(given)
    device = device_for(given.device)
    own = data.load(
        given.data, given.x_key, given.y_key, given.target_key,
        channels_last=given.channels_last_data, double=given.dtype == "float64",
    )  # fmt: skip
    torch.manual_seed(given.seed)  # a model without weights is the same one when a run goes on
    model, crafter = models_for(given, device)
    task = Task(attack, model, crafter, own, device, given.seed)
    check(task, given.model, given.data)
    results = Results(
        given.out, _settings(given, task), overwrite=given.overwrite, resume=given.resume
    )
    screen = console()
    if results.complete:
        screen.print(f"{given.out} holds the results of this run already", markup=False)
        return 0
    for line in _describe(given, task):
        screen.print(line, markup=False, soft_wrap=True)
    parts = _attack(task, results, given.batch_size)
    if parts is None:
        return 130
    whole = join(parts)
    report = _report(task, whole)
    files = results.finish(_tensors(task, whole), report, given.format)
    screen.print()
    screen.print(report)
    screen.print("Written: " + ", ".join(map(str, files)), markup=False)
    return 0


def make_attack(given: argparse.Namespace) -> Attack:
    """The attack that the options name; Mistake for options that do not go together."""
    recipe, takes = RECIPES[given.attack]
    options: dict[str, Any] = {"stop": given.stop, "mode": given.mode, "restarts": given.restarts}
    for name in ("step_size", "steps"):
        value = getattr(given, name)
        if value is not None and name not in takes:
            raise Mistake(f"--{name.replace('_', '-')} does not go with --attack {given.attack}")
        if value is not None:
            options[name] = value
    with naming("--bounds"):
        ball = BALLS[given.norm](given.radius, given.bounds)
    with naming(f"--objective {given.objective}"):
        objective = objective_for(given)
    with naming(f"--attack {given.attack}"):
        return recipe(ball, objective=objective, **options)


def objective_for(given: argparse.Namespace) -> Objective:
    """The objective, of segmentation's pixels where an option says how these are counted."""
    asked = {name: getattr(given, name) for name in ("ignore_index", "share")}
    how = {name: value for name, value in asked.items() if value is not None}
    base = BY_NAME[given.objective]
    return pixels(base, **how) if how else base


def device_for(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = textwrap.shorten(str(error), 80)
        raise Mistake(f"--device must be one of this machine's, got {name!r}: {reason}") from error
    return device


def models_for(given: argparse.Namespace, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The model that judges, and the one that the attack climbs on."""
    wide = torch.float64 if given.dtype == "float64" else torch.float32
    model = models.load(given.model, given.weights, strict=not given.no_strict)
    if (given.mean is None) != (given.std is None):
        raise Mistake("--mean and --std go together, got only one of them")
    if given.mean is not None:
        with naming("--mean and --std"):
            model = normalized(model, given.mean, given.std)
    model = model.to(device, wide)
    narrow = getattr(torch, given.dtype)
    return model, model if narrow == wide else Narrow(model, narrow)


def _settings(given: argparse.Namespace, task: Task) -> dict[str, object]:
    """What fixes the result, bit for bit: a run goes on only if all of it is the same."""
    return {
        "attack": repr(task.attack),
        "model": given.model,
        "model_sha256": models.digest(task.model),
        "data": list(given.data),
        "data_sha256": task.data.digest(),
        "seed": given.seed,
        "batch_size": given.batch_size,
        "device": str(task.device),
        "dtype": given.dtype,
        "format": given.format,
    }


def _describe(given: argparse.Namespace, task: Task) -> list[str]:
    own = task.data
    parameters = sum(p.numel() for p in task.model.parameters())
    labels = "y" if own.y is not None else "none, so the model's predictions serve"
    target = f"; targets: {given.target_key}" if own.target is not None else ""
    weights = f" with {given.weights}" if given.weights else ", with the weights that it makes"
    low, high = float(own.x.min()), float(own.x.max())
    return [
        f"model   {given.model}{weights}: {parameters:,} parameters",
        f"data    {' '.join(given.data)}: {len(own.x)} samples of {tuple(own.x.shape[1:])}, "
        f"values from {low:.4g} to {high:.4g}; labels: {labels}{target}",
        *(f"        {note}" for note in own.notes),
        f"attack  {label(task.attack)}: {task.attack}",
        f"device  {task.device}, {given.dtype}",
    ]


def _attack(task: Task, results: Results, size: int) -> list[Part] | None:
    """All parts, those done before included; None when interrupted."""
    count = len(task.data.x)
    parts: list[Part] = []
    found = 0
    with tqdm(total=count, unit=" samples", disable=None, desc="attack") as bar:
        for start in range(0, count, size):
            try:
                part = results.part(start)
                if part is None:
                    part = _batch(task, start, min(start + size, count), size)
                    results.keep(start, part)
            except KeyboardInterrupt:
                bar.close()
                print(
                    f"stopped after {start} of {count} samples, which are kept: the same command "
                    "with --resume goes on from there",
                    file=sys.stderr,
                )
                return None
            parts.append(part)
            bar.update(len(part.x_adv))
            found += int(part.scores.success.sum())
            bar.set_postfix(success=f"{found / min(start + size, count):.1%}")
    return parts


def _batch(task: Task, start: int, stop: int, size: int) -> Part:
    try:
        with naming("the attack cannot go on"):
            return task.batch(start, stop)
    except torch.OutOfMemoryError as error:
        raise Mistake(f"--batch-size must fit into {task.device}'s memory, got {size}") from error


def _report(task: Task, whole: Part) -> Report:
    return Report.of(
        whole.clean_wrong if task.data.y is not None else None,
        {label(task.attack): (task.attack, whole.scores)},
        task.seed,
        len(whole.x_adv),
        targeted=task.data.target is not None,
        pixels=whole.clean_confusion,
    )


def _tensors(task: Task, whole: Part) -> dict[str, Tensor]:
    """What adversarial.npz holds; x_adv in the layout of the data."""
    x_adv = whole.x_adv.permute(0, 2, 3, 1) if task.data.channels_last else whole.x_adv
    found = {"x_adv": x_adv, "success": whole.scores.success, "distance": whole.scores.distance}
    return found if task.data.y is None else found | {"y": task.data.y}
