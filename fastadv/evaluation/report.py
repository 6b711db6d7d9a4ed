"""The result of an evaluation: a value that prints as a table and saves as JSON."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastadv.confusion import Confusion
from fastadv.evaluation.environment import environment
from fastadv.evaluation.scores import Scores

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PixelReport:
    """Of segmentation's counted pixels: the share right, and intersection over union by class and
    its mean over those that occur (None: none does)."""

    accuracy: float | None
    miou: float | None
    iou: tuple[float | None, ...]

    @classmethod
    def of(cls, confusion: Confusion | None) -> PixelReport | None:
        """None of None."""
        if confusion is None:
            return None
        return cls(confusion.pixel_accuracy, confusion.miou, confusion.iou)


@dataclass(frozen=True)
class AttackReport:
    """One adversary's row.

    robust_accuracy: the share of samples that the model gets right at x_adv; None without labels.
    fooling_rate: the share whose prediction at x_adv is not the one at x, right or wrong: this is
    not 1 - accuracy. target_rate: the share predicted as the target; None without a target.
    mean_distance, max_distance: of ||x_adv - x|| over all samples, in the norm of the ball.
    infeasible: samples that left the ball or the box; they count as not fooled.
    seconds, forwards: to craft; forwards counts samples put through the model.
    pixels: segmentation's at x_adv; an infeasible one is replaced by x.
    """

    name: str
    attack: str
    robust_accuracy: float | None
    fooling_rate: float
    target_rate: float | None
    mean_distance: float
    max_distance: float
    infeasible: int
    seconds: float
    forwards: int
    pixels: PixelReport | None = None

    @classmethod
    def of(
        cls,
        name: str,
        attack: object,
        scores: Scores,
        labelled: bool = True,
        targeted: bool = False,
    ) -> AttackReport:
        """The row of N > 0 samples' scores."""
        return cls(
            name=name,
            attack=repr(attack),
            robust_accuracy=1 - share(scores.wrong) if labelled else None,
            fooling_rate=share(scores.changed),
            target_rate=share(scores.success) if targeted else None,
            mean_distance=float(scores.distance.mean()),
            max_distance=float(scores.distance.max()),
            infeasible=int((~scores.feasible).sum()),
            seconds=scores.seconds,
            forwards=scores.forwards,
            pixels=PixelReport.of(scores.confusion) if labelled else None,
        )


@dataclass(frozen=True)
class Report:
    """How robust a model is on `samples` samples.

    clean_accuracy: on x itself. worst_case_accuracy: the share of samples right on x and under
    every attack. Both are None without labels. environment: versions, backend, processor, threads.
    clean_pixels: segmentation's on x itself.
    """

    samples: int
    clean_accuracy: float | None
    worst_case_accuracy: float | None
    attacks: tuple[AttackReport, ...]
    seed: int
    environment: Mapping[str, str | int] = field(default_factory=environment)
    clean_pixels: PixelReport | None = None

    @classmethod
    def of(
        cls,
        wrong: Tensor | None,  # (N,) bool: the model's mistakes on x; None without labels
        scores: Mapping[str, tuple[object, Scores]],  # name: (attack, its scores)
        seed: int,
        samples: int,
        targeted: bool = False,
        pixels: Confusion | None = None,  # of x itself
    ) -> Report:
        """The report of per-sample scores."""
        labelled = wrong is not None
        rows = [AttackReport.of(name, *one, labelled, targeted) for name, one in scores.items()]
        worst = None
        if wrong is not None:
            worst = torch.stack([wrong, *(one.wrong for _, one in scores.values())]).any(0)
        return cls(
            samples=samples,
            clean_accuracy=None if wrong is None else 1 - share(wrong),
            worst_case_accuracy=None if worst is None else 1 - share(worst),
            attacks=tuple(rows),
            seed=seed,
            clean_pixels=PixelReport.of(pixels) if labelled else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: numbers, strings, lists, dictionaries; pixels only of segmentation."""
        plain = asdict(self)
        for part, name in ((plain, "clean_pixels"), *((row, "pixels") for row in plain["attacks"])):
            if part[name] is None:
                del part[name]
            else:
                part[name]["iou"] = list(part[name]["iou"])
        return plain | {"attacks": list(plain["attacks"]), "environment": dict(self.environment)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict` as JSON; an existing file is replaced only once the new one is whole."""
        save_json(path, self.to_dict())

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=100).print(self)
        return text.getvalue().rstrip()

    def __rich__(self) -> Table:
        return _table(self)


def share(flags: Tensor) -> float:
    """The mean of (N,) bool, in float64."""
    return float(flags.double().mean())


def percent(value: float | None) -> str:
    """0.3417 as 34.2 %."""
    return "" if value is None else f"{100 * value:.1f} %"


def save_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes JSON; an existing file is replaced only once the new one is whole."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    pixels = report.clean_pixels is not None
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report.samples} samples, seed {report.seed}",
        caption="fooling: predictions that change; mean, max: of ||x_adv - x||\n"
        + "accuracy, fooling: of images, by the share of their pixels\n" * pixels
        + f"backend {report.environment['backend']}",
        title_justify="left",
        caption_justify="left",
    )
    labelled = report.clean_accuracy is not None
    targeted = any(row.target_rate is not None for row in report.attacks)
    columns = (
        ["accuracy"] * labelled + ["pixels", "mIoU"] * pixels + ["fooling"] + ["target"] * targeted
    )
    columns += ["mean", "max", "forwards", "seconds"]
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    if labelled:
        table.add_row("clean", percent(report.clean_accuracy), *_pixels(report.clean_pixels))
    for row in report.attacks:
        table.add_row(*_cells(row, labelled, targeted))
    if labelled and len(report.attacks) > 1:
        table.add_section()
        table.add_row("worst case", percent(report.worst_case_accuracy))
    return table


def _pixels(report: PixelReport | None) -> list[str]:
    return [] if report is None else [percent(report.accuracy), percent(report.miou)]


def _cells(row: AttackReport, labelled: bool, targeted: bool) -> Sequence[str]:
    rates = [percent(row.robust_accuracy)] * labelled + _pixels(row.pixels)
    rates += [percent(row.fooling_rate)]
    rates += [percent(row.target_rate)] * targeted
    costs = [f"{row.mean_distance:.4g}", f"{row.max_distance:.4g}", f"{row.forwards:,}"]
    left = f" ({row.infeasible} infeasible)" if row.infeasible else ""
    return [row.name + left, *rates, *costs, f"{row.seconds:.1f}"]
