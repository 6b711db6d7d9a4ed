"""One perturbation by gradients beside ART's UniversalPerturbation, at equal test fooling rates.

For each of ART's inner attackers that suit a linf ball a table: ART runs `--passes` over the
images, and the fooling rate of the v that it returns, on test images that no search saw, is what
fa.universal.gradient has to reach: from x and y alone, in steps of half the radius along batches of
8, the fewest that get there. Both are given the model's predictions for y, the same net and images,
an equal radius and clip semantics (none is clipped, as published; --clip: to [0, 1], which ART
then knows, too); fooled is a prediction other than on the clean image. The plain eager model judges
both, after the clock. DeepFool is ART's default and the paper's inner attacker; FGSM is its
fastest, PGD its strongest here, each at the best of a few settings tried on MNIST.

Times are the processor's: ART's runs take seconds. Printed besides: when ART's v first had that
rate, which it cannot know, for it looks after a pass. fa.compile's own seconds are not in.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import gate, images, machine
from bench.nets import lenet
from bench.store import Row, rows
from bench.timing import Times

YARDSTICK = "none"
BATCH = 8
MOST = 400  # steps, before a rate counts as out of reach
ATTACKERS: dict[str, dict[str, Any]] = {
    "deepfool": {"max_iter": 10, "epsilon": 0.02, "nb_grads": 10, "verbose": False},
    "fgsm": {"eps": 1 / 3, "norm": np.inf},
    "pgd": {"eps": 1 / 3, "eps_step": 1 / 15, "max_iter": 10, "norm": np.inf, "verbose": False},
}  # lengths in radii


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `universal_gradient`."""
    parser.add_argument("--data", type=Path, help="an .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--train-steps", type=int, default=900, help="of LeNet, batch 64")
    parser.add_argument("--radius", type=float, default=0.3)
    parser.add_argument("--clip", action="store_true", help="every image to [0, 1]")
    parser.add_argument("--passes", type=int, default=1, help="of ART over the images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attackers", nargs="*", choices=ATTACKERS, default=list(ATTACKERS))
    parser.add_argument("--rate", type=float, help="to be reached, without ART")


@dataclasses.dataclass(frozen=True)
class Task:
    """What every search is given, and where it is judged."""

    model: nn.Module  # LeNet, eager
    ball: fa.Linf
    x: Tensor
    y: Tensor  # the model's predictions
    test: Tensor
    clean: Tensor  # the model's predictions on `test`

    def rate(self, v: Tensor) -> float:
        """The test images that v fools, by the plain model; raises for a v beyond the ball."""
        gate.inside("v", self.ball.norm(v[None]), self.ball.radius)
        with torch.no_grad():
            after = self.model(fa.Perturbation(v, self.ball).apply(self.test)).argmax(1)
        return float((after != self.clean).double().mean())

    def climb(self, model: nn.Module, steps: int) -> Tensor:
        """fastadv's v after so many steps."""
        attack = fa.Attack(self.ball, fa.Steepest(self.ball.radius / 2), start="zero")
        at = [torch.arange(k * BATCH, (k + 1) * BATCH) % len(self.x) for k in range(steps)]
        batches = [(self.x[index], self.y[index]) for index in at]
        return fa.universal.gradient(attack, model, batches).delta

    def fewest(self, model: nn.Module, rate: float) -> int:
        """The steps that reach the rate. Raises GateError where none does."""
        for steps in range(1, MOST + 1):
            if self.rate(self.climb(model, steps)) >= rate:
                return steps
        raise gate.GateError(f"fastadv does not fool {rate:.1%} in {MOST} steps")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """A table an attacker of ART's, or one without it."""
    task = _task(args)
    if args.rate is not None or not importlib.util.find_spec("art"):
        return [_measure(args, task, "a rate", None, 0.5 if args.rate is None else args.rate)]
    arts = {name: Art(task, name, args.passes) for name in args.attackers}
    return [_measure(args, task, name, art, 0.0) for name, art in arts.items()]


def _measure(
    args: argparse.Namespace, task: Task, name: str, art: Art | None, rate: float
) -> list[Row]:
    spent: dict[str, list[float]] = {"fastadv": [], "fastadv, plain model": []}
    notes = {}
    if art is not None:
        spent["ART"] = [_seconds(art) for _ in range(args.rounds)]
        rate = task.rate(art.v)
        notes["ART"] = f": {rate:.1%}"
        print(f"ART, {name}: v first had its rate {art.first(rate):.2f} s into the run")
    models = {"fastadv": fa.compile(task.model), "fastadv, plain model": task.model}
    for case, model in models.items():
        steps = task.fewest(model, rate)
        found: list[Tensor] = []
        for _ in range(args.rounds):
            spent[case].append(_seconds(lambda: found.append(task.climb(model, steps))))  # noqa: B023
        if task.rate(found[-1]) < rate:
            raise gate.GateError(f"{case} fools fewer than {rate:.1%} when it is timed")
        notes[case] = f": {task.rate(found[-1]):.1%}"
        print(f"{case}: {steps} steps")
    # A quantile needs two rounds.
    times = {case: Times(tuple(s * 2 if len(s) == 1 else s)) for case, s in spent.items()}
    clip = "clipped" if args.clip else "not clipped"
    fixed: dict[str, str | int] = {
        "benchmark": "universal_gradient", "shape": "x".join(map(str, task.x.shape)),
        "dtype": "float32", "norm": f"linf {args.radius:g}, {clip}, {name}",
        "threads": args.threads,
        "working_set": machine.fits(sum(p.numel() * 4 for p in task.model.parameters())),
    }  # fmt: skip
    table = rows(times, {}, YARDSTICK, fixed)
    return [dataclasses.replace(row, case=row.case + notes[row.case]) for row in table]


def _seconds(case: Callable[[], object]) -> float:
    began = time.process_time()
    case()
    return time.process_time() - began


class Art:
    """ART's search; `v` is what the last run returned, `seen` each update and when it came."""

    def __init__(self, task: Task, attacker: str, passes: int) -> None:
        estimators: Any = importlib.import_module("art.estimators.classification")
        self.module: Any = importlib.import_module("art.attacks.evasion.universal_perturbation")
        self.task, self.attacker, self.passes = task, attacker, passes
        box = None if task.ball.bounds is None else (0.0, 1.0)
        self.wrapped = estimators.PyTorchClassifier(
            task.model, nn.CrossEntropyLoss(), tuple(task.x.shape[1:]), 10, clip_values=box,
            device_type="cpu",
        )  # fmt: skip
        self.v, self.seen = torch.zeros(0), list[tuple[float, Tensor]]()

    def __call__(self) -> None:
        radius = self.task.ball.radius
        inner = dict(ATTACKERS[self.attacker])
        inner |= {name: inner[name] * radius for name in ("eps", "eps_step") if name in inner}
        search = self.module.UniversalPerturbation(
            self.wrapped, attacker=self.attacker, attacker_params=inner, delta=0.0,
            max_iter=self.passes, eps=radius, norm=np.inf, batch_size=len(self.task.x),
            verbose=False,
        )  # fmt: skip
        random.seed(0)
        began, project = time.process_time(), self.module.projection
        self.seen = []

        def watched(*given: Any, **more: Any) -> Any:
            v = project(*given, **more)
            self.seen.append((time.process_time() - began, self._inside(v)))
            return v

        self.module.projection = watched  # a copy of v at each update, microseconds
        try:
            search.generate(self.task.x.numpy(), np.eye(10, dtype=np.float32)[self.task.y])
        finally:
            self.module.projection = project
        self.v = self._inside(search.noise)

    def first(self, rate: float) -> float:
        """When v first had the rate: seconds."""
        return next(when for when, v in self.seen if self.task.rate(v) >= rate)

    def _inside(self, v: Any) -> Tensor:
        """v in float32; ART's own rounding may leave the ball by one."""
        radius = self.task.ball.radius
        found = torch.from_numpy(np.asarray(v, np.float32)).reshape(self.task.x.shape[1:])
        gate.inside("ART's v", found.abs().max(), radius * (1 + 1e-6))
        return fa.Linf(radius, None).project(found[None], torch.zeros_like(found)[None])[0]


def _task(args: argparse.Namespace) -> Task:
    torch.manual_seed(0)
    data = images.load(args.data)
    x, test, y = data.x, data.x_test, data.y
    if args.data is None:
        x, test = (functional.interpolate(t, size=(28, 28)) for t in (x, test))
    model = lenet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(args.train_steps):
        index = torch.randint(len(x), (64,))
        loss = functional.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval().requires_grad_(False)
    x = x[torch.randperm(len(x))[: args.images]]
    test = test[::5]
    with torch.no_grad():
        predicted, clean = model(x).argmax(1), model(test).argmax(1)
    ball = fa.Linf(args.radius, (0.0, 1.0) if args.clip else None)
    return Task(model, ball, x, predicted, test, clean)
