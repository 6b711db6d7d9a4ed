"""python -m fastadv universal: one perturbation for a person's own model and data."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastadv.balls import Ball
from fastadv.cli import data, models, universal_options
from fastadv.cli.arguments import Commands, Mistake, Parser, console, naming
from fastadv.cli.attack import BALLS, device_for, models_for
from fastadv.cli.data import Data
from fastadv.cli.results import Folder, save_npz, write
from fastadv.cli.universal_labels import Labels
from fastadv.cli.universal_methods import METHODS, TARGETS, Batches, Job, Options, options_of
from fastadv.cli.universal_scenes import Scenes, saved_target, target_of
from fastadv.evaluation import plots
from fastadv.evaluation.environment import environment
from fastadv.perturbation import Perturbation
from fastadv.placement import require_fit
from fastadv.problem import output
from fastadv.universal.rates import predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 5  # images in the figure
Judge = Labels | Scenes
Rates = dict[str, dict[str, Any]]  # of what, on which part of the data: a judge's


class _Folder(Folder):
    names = ("uap.safetensors", "uap.png", "adversarial.npz")

    @property
    def state(self) -> Path:
        """Where a search keeps what it would go on from."""
        return self._parts / "state.safetensors"


def add(commands: Commands[Parser]) -> None:
    """Adds the command to the command line."""
    universal_options.add(commands).set_defaults(run=run, command="universal")


@dataclass(frozen=True)
class _Task:
    """What was asked for: the model that is climbed on, the judge, by its own model, the data."""

    given: argparse.Namespace
    device: torch.device
    crafter: nn.Module
    judge: Judge
    own: Data

    @property
    def parts(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The data that the search sees, and the rest; or all of it for --apply."""
        x, y = self.own.x, self.own.y
        if self.given.apply:
            return {"all": (x, y)}
        first = len(x) - int(self.given.holdout * len(x))
        labels = (None, None) if y is None else (y[:first], y[first:])
        parts = {"searched": (x[:first], labels[0]), "unseen": (x[first:], labels[1])}
        return {name: part for name, part in parts.items() if len(part[0])}


def run(given: argparse.Namespace) -> int:
    """Checks everything, finds or loads the perturbation, measures, writes and prints."""
    options = options_of(given)
    asked = dict(options)
    saved = _load(given.apply) if given.apply else None
    task = _task(given, options)
    if saved is not None:
        _require_fit(saved, given.apply, task.own.x)
    with naming("--bounds"):
        ball = saved.ball if saved else BALLS[given.norm](given.radius, given.bounds)
    folder = _Folder(
        given.out, _settings(task, ball, asked), overwrite=given.overwrite, resume=given.resume
    )
    screen = console()
    if folder.complete:
        screen.print(f"{given.out} holds the results of this run already", markup=False)
        return 0
    began = time.perf_counter()
    uap = saved or _search(task, ball, folder.state, options)
    if uap is None:
        return 130
    seconds = time.perf_counter() - began
    rates = _rates(task, uap)
    files = _write(task, folder, uap, rates, seconds)
    screen.print(repr(uap), markup=False, soft_wrap=True)
    screen.print(task.judge.table(rates))
    screen.print("Written: " + ", ".join(map(str, files)), markup=False)
    return 0


def _task(given: argparse.Namespace, options: Options) -> _Task:
    if given.holdout >= 1:
        raise Mistake(f"--holdout must be below 1, got {given.holdout:g}")
    device = device_for(given.device)
    own = data.load(
        given.data, given.x_key, given.y_key, None,
        channels_last=given.channels_last_data, double=given.dtype == "float64",
    )  # fmt: skip
    torch.manual_seed(given.seed)  # a model without weights is the same one when a run goes on
    model, crafter = models_for(given, device)
    with torch.no_grad(), naming(f"--data {' '.join(given.data)} with --model {given.model}"):
        logits = output(model.eval(), own.x[:1].to(device))
        if logits.dim() != 4:
            predictions(model, own.x[:1].to(device))
    judge = _judge(given, model, logits, own, options)
    return _Task(given, device, crafter, judge, own)


def _judge(
    given: argparse.Namespace, model: nn.Module, logits: Tensor, own: Data, options: Options
) -> Judge:
    """By the model's logits; Mistake for a method or for options that do not go with them."""
    came = f"--model {given.model} gives {tuple(logits.shape)} for one sample"
    if given.method and logits.dim() not in METHODS[given.method].logits:
        others = [name for name, method in METHODS.items() if logits.dim() in method.logits]
        needs = "(N, classes)" if logits.dim() == 4 else "(N, classes, H, W)"
        raise Mistake(
            f"--method {given.method} takes logits {needs}, but {came}: "
            f"--method {', '.join(others)} take these"
        )
    if logits.dim() == 4:
        asked = next((name for name in TARGETS if name in options), None)
        target = target_of(options, own)
        index = given.ignore_index
        if given.apply:
            saved, void = saved_target(given.apply)
            target = saved if target is None else target
            index = void if index is None else index
        scenes = Scenes(model, target, 255 if index is None else index)
        scenes.check(logits.cpu(), own.y, f"--{asked}" if asked else "--apply")
        return scenes
    for name in (*TARGETS, "ignore_index"):
        if getattr(given, name) is not None:
            raise Mistake(
                f"--{name.replace('_', '-')} goes with logits (N, classes, H, W), but {came}"
            )
    if own.y is not None and own.y.shape != own.x.shape[:1]:
        raise Mistake(
            f"--data: y must be class labels ({len(own.x)},) for logits (N, classes), "
            f"got {tuple(own.y.shape)}"
        )
    return Labels(model)


def _load(file: str) -> Perturbation:
    if not Path(file).is_file():
        raise Mistake(f"--apply must name an existing file, got {file!r}")
    with naming("--apply"):
        uap = Perturbation.load(file)
    if uap.per_class:
        raise Mistake(f"--apply {file} must be one delta for all inputs, got one a class")
    return uap


def _require_fit(uap: Perturbation, file: str, x: Tensor) -> None:
    if uap.place is not None:
        with naming("--apply"):
            require_fit(uap.delta.shape, x.shape[1:], uap.place, "delta")
    elif uap.delta.shape != x.shape[1:]:
        raise Mistake(
            f"--apply {file} is for samples of {tuple(uap.delta.shape)}, "
            f"got data of {tuple(x.shape[1:])}"
        )


def _search(task: _Task, ball: Ball, state: Path, options: Options) -> Perturbation | None:
    """The perturbation; None when interrupted."""
    given, judge = task.given, task.judge
    batches = Batches(*task.parts["searched"], given.batch_size, task.device, given.seed)
    try:
        with naming(f"--method {given.method}"):
            job = Job(
                ball, task.crafter, batches, state, given.seed, judge.objective, judge.target,
                judge.ignore_index,
            )  # fmt: skip
            return METHODS[given.method].run(job, dict(options))
    except torch.OutOfMemoryError as error:
        raise Mistake("--batch-size must fit into the device's memory") from error
    except KeyboardInterrupt:
        kept = "what is done is kept: " if state.exists() else ""
        print(f"stopped; {kept}the same command with --resume goes on", file=sys.stderr)
        return None


def _rates(task: _Task, uap: Perturbation) -> Rates:
    """Of the perturbation, and of noise as large, on each part of the data."""
    free, zeros = replace(uap.ball, bounds=None), torch.zeros_like(uap.delta)[None]
    draw = torch.Generator().manual_seed(task.given.seed)
    signs = torch.randint(0, 2, zeros.shape, generator=draw).to(zeros) * 2 - 1
    noise = free.project(signs * (uap.ball.radius / float(free.norm(signs)[0])), zeros)[0]
    size, device = task.given.batch_size, task.device
    with naming("--data"):
        return {
            name: {
                part: task.judge.rates(one, Batches(x, y, size, device, None))
                for part, (x, y) in task.parts.items()
            }
            for name, one in (("perturbation", uap), ("noise", replace(uap, delta=noise)))
        }


def _write(
    task: _Task, folder: _Folder, uap: Perturbation, rates: Rates, seconds: float
) -> list[Path]:
    given = task.given
    counted = {name: {p: asdict(r) for p, r in parts.items()} for name, parts in rates.items()}
    files = []
    if given.apply:
        files.append(folder.folder / "adversarial.npz")
        arrays = _applied(task, uap)
        write(files[-1], lambda path: save_npz(path, arrays))
    else:
        facts = {
            "method": given.method, "model": given.model, "rates": json.dumps(counted),
            "data_sha256": task.own.digest(), "seed": str(given.seed), **task.judge.facts(),
        }  # fmt: skip
        files.append(folder.folder / "uap.safetensors")
        uap.save(files[-1], facts)
    figure = _figure(task, uap)
    if figure is not None:
        files.append(plots.save(figure, folder.folder / "uap.png"))
    report = {
        "rates": counted, "norm": uap.norm(), "ball": repr(uap.ball), "seconds": seconds,
        "seed": given.seed, "environment": environment(),
    }  # fmt: skip
    return [*files, folder.close(report)]


def _applied(task: _Task, uap: Perturbation) -> dict[str, np.ndarray[Any, Any]]:
    found: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for batch in torch.split(task.own.x, task.given.batch_size):
            x = batch.to(task.device)
            x_adv = uap.apply(x)
            found.append({"x_adv": x_adv.cpu(), **task.judge.outcome(x, x_adv)})
    arrays = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    if task.own.channels_last:
        arrays["x_adv"] = arrays["x_adv"].permute(0, 2, 3, 1).contiguous()
    if task.own.y is not None:
        arrays["y"] = task.own.y
    return {name: values.numpy() for name, values in arrays.items()}


def _figure(task: _Task, uap: Perturbation) -> Figure | None:
    """None where there is nothing to draw: no images, or no matplotlib."""
    if task.own.x.dim() != 4 or task.own.x.shape[1] not in (1, 3):
        return None
    try:
        plots.require()
    except ModuleNotFoundError as error:
        print(f"uap.png is left out: {error}", file=sys.stderr)
        return None
    draw = torch.Generator().manual_seed(task.given.seed)
    shown = torch.randperm(len(task.own.x), generator=draw)[:_SHOWN]
    x, y = (None if t is None else t[shown].to(task.device) for t in (task.own.x, task.own.y))
    assert x is not None
    with torch.no_grad():
        return task.judge.figure(uap, x, y)


def _settings(task: _Task, ball: Ball, options: Options) -> dict[str, object]:
    """What fixes the result: a run goes on only if all of it is the same."""
    given = task.given
    saved = Path(given.apply).read_bytes() if given.apply else b""
    return {
        "method": given.method or f"apply {given.apply}",
        "perturbation_sha256": hashlib.sha256(saved).hexdigest() if saved else None,
        "ball": repr(ball),
        "options": options,
        **task.judge.settings(),
        "holdout": given.holdout,
        "model": given.model,
        "model_sha256": models.digest(task.judge.model),
        "data": list(given.data),
        "data_sha256": task.own.digest(),
        "seed": given.seed,
        "batch_size": given.batch_size,
        "device": str(task.device),
        "dtype": given.dtype,
    }
