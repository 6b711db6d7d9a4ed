"""python -m bench.agreement: PGD-40 here, in torchattacks and in foolbox finds the same accuracy.

The demo's two nets on scikit-learn's digits, linf and l2, at equal radius, step size and steps. All
x_adv are re-scored by the eager model, for every library alike (fa.verify, with 1e-5 of room for
the others' roundings). Starts:

    zero  x itself
    same  over five seeds, torchattacks' random start, handed to all three
    own   over five seeds, each library's own random start. In l2 they are not the same law: uniform
          by volume here and in foolbox, by radius in torchattacks, whose starts are closer to x

Exit code 1 where a mean under `zero` or `same` differs from fastadv's by more than half a point.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm.auto import tqdm

import fastadv as fa
from bench import store
from fastadv.cli import digits
from fastadv.cli.trial import FULL, madry, natural

foolbox: Any = importlib.import_module("foolbox")  # untyped, both
torchattacks: Any = importlib.import_module("torchattacks")

STEPS = 40
SEEDS = range(5)
ALLOWED = 0.5  # points
BALLS: dict[str, tuple[fa.Ball, float]] = {  # with the step size
    "linf": (fa.Linf(0.15), 0.01),
    "l2": (fa.L2(0.75), 0.05),
}
RESULTS = store.RESULTS / "agreement.csv"

# (model, x, y, norm, start) -> x_adv; the start is a tensor, None for x itself, or "own".
Start = Tensor | str | None
Craft = Callable[[nn.Module, Tensor, Tensor, str, Start], Tensor]


@dataclass(frozen=True)
class Row:
    """One library's attack on one model. Accuracies in percent, of the eager model."""

    model: str
    norm: str
    radius: float
    step_size: float
    steps: int
    start: str
    seed: int
    library: str
    version: str
    clean_accuracy: float
    robust_accuracy: float
    infeasible: int
    samples: int


def here(model: nn.Module, x: Tensor, y: Tensor, norm: str, start: Start) -> Tensor:
    """fastadv."""
    ball, size = BALLS[norm]
    if isinstance(start, Tensor):
        ball = _starting_at(start, ball)
    return fa.pgd(ball, size, STEPS, start="zero" if start is None else "uniform")(model, x, y)


def _starting_at(start: Tensor, ball: fa.Ball) -> fa.Ball:
    """The ball, with one given point a sample for its random start."""

    class Started(type(ball)):  # type: ignore[misc]
        def sample(self, x: Tensor, seed: int, **options: object) -> Tensor:
            return start.clone()

    return Started(ball.radius, ball.bounds)


def with_torchattacks(model: nn.Module, x: Tensor, y: Tensor, norm: str, start: Start) -> Tensor:
    """torchattacks.PGD and PGDL2; `start` must be its own draw under torch's seed of now."""
    return _torchattacks(model, x, y, norm, STEPS, start is not None)


def _torchattacks(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int, random: bool
) -> Tensor:
    ball, size = BALLS[norm]
    method = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    attack = method(model, eps=ball.radius, alpha=size, steps=steps, random_start=random)
    x_adv: Tensor = attack(x, y)
    return x_adv


def with_foolbox(model: nn.Module, x: Tensor, y: Tensor, norm: str, start: Start) -> Tensor:
    """foolbox.attacks.LinfPGD and L2PGD."""
    ball, size = BALLS[norm]
    attacks = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    attack = attacks[norm](abs_stepsize=size, steps=STEPS, random_start=start is not None)
    if isinstance(start, Tensor):
        attack.get_random_start = lambda x0, epsilon: type(x0)(start)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    _, x_adv, _ = attack(wrapped, x, y, epsilons=ball.radius)
    found: Tensor = x_adv
    return found


LIBRARIES: dict[str, Craft] = {
    "fastadv": here,
    "torchattacks": with_torchattacks,
    "foolbox": with_foolbox,
}


def main() -> int:
    """Attacks, stores bench/results/agreement.csv, prints the differences."""
    torch.set_num_threads(1)  # images of 64 pixels
    torch.manual_seed(0)
    data = digits.load()
    models = {
        "natural": digits.train(digits.make_model(), data, natural, epochs=FULL.epochs),
        "robust": digits.train(digits.make_model(), data, madry(), epochs=FULL.robust_epochs),
    }
    rows = list(measure(models, data.x_test, data.y_test))
    store.save(rows, RESULTS, anew=True)
    table, largest = summary(rows)
    Console(width=100).print(table)
    print(f"largest difference under equal starts {largest:.2f} points, allowed {ALLOWED}")
    print(f"rows: {RESULTS}")
    return int(largest > ALLOWED)


def measure(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> Iterable[Row]:
    """One row a model, norm, start, seed and library."""
    starts = [("zero", 0), *((start, seed) for start in ("same", "own") for seed in SEEDS)]
    jobs = [(m, n, s, lib) for m in models for n in BALLS for s in starts for lib in LIBRARIES]
    for name, norm, (start, seed), library in tqdm(jobs, disable=None):
        model, (ball, size) = models[name], BALLS[norm]
        where: Start = {"zero": None, "own": "own"}.get(start)
        if start == "same":
            torch.manual_seed(seed)
            where = _torchattacks(model, x, y, norm, 0, random=True)
        torch.manual_seed(seed)
        x_adv = LIBRARIES[library](model, x, y, norm, where).detach()
        verdict = fa.verify(model, x, x_adv, y, ball, tolerance=1e-5)
        with torch.no_grad():
            clean = float((model(x).argmax(1) == y).double().mean())
        version = fa.__version__ if library == "fastadv" else importlib.metadata.version(library)
        yield Row(
            model=name, norm=norm, radius=ball.radius, step_size=size, steps=STEPS, start=start,
            seed=seed, library=library, version=version, clean_accuracy=round(100 * clean, 4),
            robust_accuracy=round(100 * verdict.robust_accuracy, 4),
            infeasible=int((~verdict.feasible).sum()), samples=len(x),
        )  # fmt: skip


def summary(rows: list[Row]) -> tuple[Table, float]:
    """Mean accuracies over the seeds, and the largest difference from fastadv's, in points."""
    table = Table(
        title=f"robust accuracy under PGD-{STEPS}, %: mean (least-most) over the seeds",
        box=box.SIMPLE_HEAD,
    )
    for column in ("model", "norm", "start", *LIBRARIES, "difference"):
        table.add_column(column, no_wrap=True)
    largest = 0.0
    for model, norm, start in dict.fromkeys((r.model, r.norm, r.start) for r in rows):
        means, texts = [], []
        for library in LIBRARIES:
            found = [
                row.robust_accuracy
                for row in rows
                if (row.model, row.norm, row.start, row.library) == (model, norm, start, library)
            ]
            means.append(sum(found) / len(found))
            spread = f" ({min(found):.1f}-{max(found):.1f})" if len(found) > 1 else ""
            texts.append(f"{means[-1]:.2f}{spread}")
        difference = max(abs(mean - means[0]) for mean in means)
        if start != "own":
            largest = max(largest, difference)
        table.add_row(model, norm, start, *texts, f"{difference:.2f}")
    return table, largest


if __name__ == "__main__":
    sys.exit(main())
