"""python -m fastadv demo: the whole of fastadv on real images, in under a minute."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from fastadv.cli import demo_show, digits
from fastadv.cli.arguments import Commands, Help, Mistake, Parser, console, whole
from fastadv.cli.trial import FULL, QUICK, Trial, curves, madry, natural, trial
from fastadv.evaluation import plots
from fastadv.evaluation.report import save_json

_ABOUT = """\
The whole of fastadv on real images, scikit-learn's digits (8 x 8 pixels in [0, 1]):

  1. train a small convolutional net, and attack it with PGD under linf and under l2;
  2. find one universal perturbation that fools it on most images, beside random noise of its size;
  3. train the same net adversarially (Madry et al. 1706.06083), on both balls in turn;
  4. attack that one in the same way: print one table, and draw one figure.
"""

_MORE = """\
what is written, into the folder --out:
  figure.png    clean image, perturbation and adversarial image under each attack; accuracy
                against the radius
  report.json   every number of the table and the figure, with versions, backend and seed

examples:
  python -m fastadv demo
  python -m fastadv demo --seed 1 --out out/seed-1
"""

NATURAL, ROBUST = "natural", "robust"


def add(commands: Commands[Parser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="train a small net on digits, attack it, defend it: one table and one figure",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=Help,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR",
        help="the folder for the figure and the numbers (default: out/demo)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N",
        help="of the split, the nets, the batches and the starts (default: 0): the same seed gives "
        "the same table",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds' worth, for a first look: weaker nets"
    )
    parser.set_defaults(run=run, command="demo")


def run(given: argparse.Namespace) -> int:
    """Trains, attacks, prints and draws."""
    began = time.perf_counter()
    plots.require()
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--out {given.out} cannot be made: {error.strerror}") from error
    effort, seed = (QUICK if given.quick else FULL), given.seed
    data = digits.load(seed)
    # An image has 64 pixels: a second thread costs more than it gives.
    with _threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        jobs = {NATURAL: (natural, effort.epochs), ROBUST: (madry(), effort.robust_epochs)}
        trials = {}
        for name, (loss, epochs) in jobs.items():
            model = digits.make_model(seed)
            fit = partial(
                digits.train, model, data, loss, epochs=epochs, seed=seed, name=f"train, {name}"
            )
            trials[name] = trial(data, fit, seed, effort)
        lines = curves(trials, data, seed, effort)
        drawn = demo_show.figure(trials, lines, data, seed)
    figure = plots.save(drawn, given.out / "figure.png")
    numbers = given.out / "report.json"
    save_json(numbers, _numbers(trials, lines))
    screen = console()
    screen.print(demo_show.table(trials, data, seed))
    seconds = time.perf_counter() - began
    screen.print(f"Written: {figure}, {numbers}; {seconds:.0f} s in all", markup=False)
    return 0


def _numbers(trials: dict[str, Trial], lines: list[plots.Curve]) -> dict[str, object]:
    return {
        "models": {
            name: one.report.to_dict() | {"seconds": one.seconds} for name, one in trials.items()
        },
        "curves": [asdict(curve) for curve in lines],
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
