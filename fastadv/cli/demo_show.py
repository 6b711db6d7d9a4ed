"""The demo's table and figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastadv.attack import Attack
from fastadv.cli.digits import Digits
from fastadv.cli.trial import Trial
from fastadv.evaluation import plots
from fastadv.evaluation.names import readable
from fastadv.evaluation.report import percent
from fastadv.evaluation.scores import craft
from fastadv.perturbation import Perturbation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


SHOWN = ("PGD linf", "PGD l2", "universal")


def table(trials: Mapping[str, Trial], data: Digits, seed: int) -> Table:
    """A row a model: accuracy on clean and attacked images, fooling rates, seconds, backend."""
    from rich import box
    from rich.table import Table

    first = next(iter(trials.values()))
    shown = Table(
        title=f"{len(data.y_test)} test images of scikit-learn's digits, seed {seed}; "
        f"backend {_backend(first)}",
        caption="robust: trained on PGD's examples; fools: the share of predictions that change",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("accuracy:")
    columns = ["clean"]
    for name, adversary in first.adversaries.items():
        kind = f"PGD-{adversary.steps}" if isinstance(adversary, Attack) else name
        columns.append(f"{kind}\n{adversary.ball.order} {readable(adversary.ball)}")
    for name in (*columns, "universal\nfools", "noise\nfools", "seconds"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, trial in trials.items():
        rows = {row.name: row for row in trial.report.attacks}
        shown.add_row(
            name,
            percent(trial.report.clean_accuracy),
            *(percent(row.robust_accuracy) for row in rows.values()),
            percent(rows["universal"].fooling_rate),
            percent(rows["noise"].fooling_rate),
            f"{trial.seconds:.1f}",
        )
    return shown


def figure(
    trials: Mapping[str, Trial], curves: list[plots.Curve], data: Digits, seed: int
) -> Figure:
    """One test image under each attack, and the curves."""
    index = _telling(trials, data, seed)
    x, y = data.x_test[index : index + 1], data.y_test[index : index + 1]
    examples: dict[str, dict[str, plots.Example]] = {}
    for name in SHOWN:
        examples[name] = {}
        for model, trial in trials.items():
            adversary = trial.adversaries[name]
            x_adv, _, _ = craft(adversary, trial.model, x, y, seed=seed, offset=index)
            prediction = int(trial.model(x_adv).argmax(1))
            delta = adversary.delta if isinstance(adversary, Perturbation) else x_adv[0] - x[0]
            examples[name][model] = plots.Example(x[0], delta, x_adv[0], int(y), prediction)
    first = next(iter(trials.values()))
    balls = {name: first.adversaries[name].ball for name in examples}
    named = {f"{name} {ball.radius:g}": examples[name] for name, ball in balls.items()}
    return plots.draw("Adversarial examples on scikit-learn's digits", named, curves)


def _telling(trials: Mapping[str, Trial], data: Digits, seed: int, among: int = 64) -> int:
    """The first test image that shows the rule: one model fooled by all, the other by none."""
    x, y = data.x_test[:among], data.y_test[:among]
    score = torch.zeros(len(y))
    for sign, trial in zip((1, -1), trials.values(), strict=True):
        score -= 4 * _wrong(trial, x, y)
        for name in SHOWN:
            x_adv, _, _ = craft(trial.adversaries[name], trial.model, x, y, seed=seed)
            score += sign * _wrong(trial, x_adv, y)
    return int(score.argmax())


def _wrong(trial: Trial, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        wrong: Tensor = trial.model(x).argmax(1) != y
    return wrong.float()


def _backend(trial: Trial) -> str:
    """What served the ops on the CPU."""
    return str(trial.report.environment["backend"]).partition(";")[0].removeprefix("cpu: ")
