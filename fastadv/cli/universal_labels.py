"""How python -m fastadv universal judges a perturbation of a classifier: rates, table, figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from torch import Tensor, nn

from fastadv.cli.universal_methods import Batches
from fastadv.evaluation import plots
from fastadv.objectives import Objective, cross_entropy
from fastadv.perturbation import Perturbation
from fastadv.universal import Rates, measure
from fastadv.universal.rates import predictions
from fastadv.universal.scenes import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Labels:
    """Of logits (N, classes)."""

    model: nn.Module
    target: Target = None
    ignore_index: int = 255
    objective: Objective = cross_entropy

    def rates(self, uap: Perturbation, batches: Batches) -> Rates:
        return measure(uap, self.model, batches)

    def settings(self) -> dict[str, object]:
        """What the run's result depends on."""
        return {}

    def facts(self) -> dict[str, str]:
        """What a saved perturbation is to say of what it was made for."""
        return {}

    def outcome(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        """What --apply writes of a batch."""
        return {"fooled": (predictions(self.model, x_adv) != predictions(self.model, x)).cpu()}

    def figure(self, uap: Perturbation, x: Tensor, y: Tensor | None) -> Figure:
        x_adv = uap.apply(x)
        before, after = predictions(self.model, x), predictions(self.model, x_adv)
        return plots.perturbation(uap.whole(x.shape[1:]), x, x_adv, before.tolist(), after.tolist())

    def table(self, rates: dict[str, dict[str, Rates]]) -> Table:
        shown: dict[str, Callable[[Rates], str]] = {
            "samples": lambda one: str(one.samples),
            "fooled": lambda one: f"{one.fooled:.1%}",
            "wrong": lambda one: "" if one.wrong is None else f"{one.wrong:.1%}",
        }
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("", "data", *shown):
            table.add_column(column, justify="right" if column in shown else "left")
        for name, parts in rates.items():
            for part, one in parts.items():
                table.add_row(name, part, *(show(one) for show in shown.values()))
        return table
