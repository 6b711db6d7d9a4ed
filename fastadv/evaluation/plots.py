"""The figure: what attacks do to one input, and how accuracy falls with the radius.

matplotlib is imported when a figure is drawn, and without a display (Agg).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#c8553d", "#2a6f97", "#588157", "#7d5ba6")
_RIGHT, _WRONG, _QUIET, _DARK = "#2f6f4f", "#c8553d", "#6b6b6b", "#222222"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": "#333333",
    "xtick.color": "#6b6b6b",
    "ytick.color": "#6b6b6b",
}


@dataclass(frozen=True)
class Example:
    """One input under one attack on one model. x, delta, x_adv: (H, W) or (C, H, W)."""

    x: Tensor
    delta: Tensor
    x_adv: Tensor
    label: int
    prediction: int  # at x_adv


@dataclass(frozen=True)
class Curve:
    """Accuracy in [0, 1] at each radius, for each model; `marked`, a radius to point out."""

    title: str
    radii: Sequence[float]
    accuracy: Mapping[str, Sequence[float]]
    marked: float | None = None


def draw(
    title: str,
    examples: Mapping[str, Mapping[str, Example]],  # attack: model: its example
    curves: Sequence[Curve],
) -> Figure:
    """One figure: a row an attack, with the perturbation and x_adv for each model, and the curves.

    Raises ModuleNotFoundError, and says what to install, where there is no matplotlib.
    """
    matplotlib, figure_type = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure: Figure = figure_type(
            figsize=(12.5, 1.2 + 1.6 * len(examples)), layout="constrained"
        )
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=_DARK)
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.7, 1.0), wspace=0.03)
        _examples(parts[0], examples)
        axes = parts[1].subplots(len(curves), 1, squeeze=False)[:, 0]
        for number, (one, curve) in enumerate(zip(axes, curves, strict=True)):
            _curve(one, curve, legend=number == 0)
    return figure


def perturbation(
    delta: Tensor, x: Tensor, x_adv: Tensor, before: Sequence[int], after: Sequence[int]
) -> Figure:
    """delta (C, H, W) on a scale of its own, then images without it above those with it."""
    matplotlib, figure_type = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure: Figure = figure_type(figsize=(1.6 * (len(x) + 2), 3.6), layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=(2, len(x)))
        left, right = parts
        _change(left.subplots(), delta)
        for column, two in enumerate(right.subplots(2, len(x), squeeze=False).T):
            _picture(two[0], x[column])
            _caption(two[0], f"predicted {before[column]}", _QUIET)
            _picture(two[1], x_adv[column])
            colour = _RIGHT if before[column] == after[column] else _WRONG
            _caption(two[1], f"predicted {after[column]}", colour)
    return figure


def scenes(delta: Tensor, x: Tensor, x_adv: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Segmentation: delta (C, H, W) on a scale of its own; images without it and with it; under its
    name each of the label maps (N, H, W), in a colour a class, black below 0."""
    matplotlib, figure_type = _matplotlib()
    count, high = len(x), 2 + len(maps)
    size = (1.9 * (count + 2), (1.8 * x.shape[-2] / x.shape[-1] + 0.2) * high)
    with matplotlib.rc_context(_STYLE):
        figure: Figure = figure_type(figsize=size, layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=(2, count))
        left, right = parts
        _change(left.subplots(), delta)
        grid = right.subplots(high, count, squeeze=False)
        for number, column in enumerate(grid.T):
            seen = [_colours(labels[number]) for labels in maps.values()]
            for axes, image in zip(column, [x[number], x_adv[number], *seen], strict=True):
                _picture(axes, image)
        for axes, name in zip(grid[:, 0], ("x", "x with it", *maps), strict=True):
            axes.set_ylabel(name, fontsize=9, color=_QUIET)
    return figure


def require() -> None:
    """Raises ModuleNotFoundError, and says what to install, where no figure can be drawn."""
    _matplotlib()


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a .png; an existing file is replaced only once the new one is whole."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial.png")
    try:
        figure.savefig(partial, dpi=150, facecolor="white")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a figure needs matplotlib: pip install fastadv[demo]", name=error.name
        ) from error
    return matplotlib, Figure


def _examples(figure: Any, examples: Mapping[str, Mapping[str, Example]]) -> None:
    models = list(next(iter(examples.values())))
    parts = figure.subfigures(1, 1 + len(models), width_ratios=(1.13, *[2] * len(models)))
    parts[0].suptitle(" ", fontsize=10)
    clean = parts[0].subplots(len(examples), 1, squeeze=False)[:, 0]
    clean[0].set_title("clean", fontsize=9, color=_QUIET)
    for axes, (attack, by_model) in zip(clean, examples.items(), strict=True):
        first = next(iter(by_model.values()))
        _picture(axes, first.x)
        _caption(axes, f"a {first.label}", _QUIET)
        axes.set_ylabel(attack, fontsize=10, fontweight="bold", labelpad=8, color=_DARK)
    for part, model, colour in zip(parts[1:], models, _COLOURS, strict=False):
        part.suptitle(model, fontsize=10, fontweight="bold", color=colour)
        _pairs(part, [by_model[model] for by_model in examples.values()])


def _pairs(figure: Any, examples: Sequence[Example]) -> None:
    """Perturbation and adversarial image, a row an attack."""
    grid = figure.subplots(len(examples), 2, squeeze=False)
    for axes, name in zip(grid[0], ("perturbation", "adversarial"), strict=True):
        axes.set_title(name, fontsize=9, color=_QUIET)
    for (left, right), example in zip(grid, examples, strict=True):
        _change(left, example.delta)
        _picture(right, example.x_adv)
        colour = _RIGHT if example.prediction == example.label else _WRONG
        _caption(right, f"predicted {example.prediction}", colour)


def _picture(axes: Axes, x: Tensor) -> None:
    image = _image(x)
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    _frame(axes)


def _change(axes: Axes, delta: Tensor) -> None:
    """Signed, blue to red, each on a scale of its own; the mean over the colours."""
    values = _image(delta)
    values = values.mean(-1) if values.ndim == 3 else values
    largest = float(np.abs(values).max()) or 1.0
    scale = 1.3 * largest  # the map's ends are nearly black
    axes.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    _frame(axes)
    _caption(axes, f"largest {largest:.2g}", _QUIET)


def _image(x: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    values = x.detach().cpu().float()
    if values.dim() == 3:
        values = values[0] if len(values) == 1 else values.permute(1, 2, 0)
    return np.asarray(values.numpy())


def _colours(labels: Tensor) -> Tensor:  # (H, W) -> (3, H, W)
    """The hues of labels that follow each other are a golden section of the circle apart."""
    classes = range(max(int(labels.max()), 0) + 1)
    table = [hsv_to_rgb(0.618034 * c % 1, 0.65, (0.9, 0.65)[c % 2]) for c in classes]
    return torch.tensor([(0.0, 0.0, 0.0), *table])[labels.cpu().clamp(min=-1) + 1].movedim(-1, 0)


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#d0d0d0")


def _caption(axes: Axes, text: str, colour: str) -> None:
    axes.set_xlabel(text, fontsize=9, color=colour, labelpad=4)


def _curve(axes: Axes, curve: Curve, legend: bool) -> None:
    for colour, (model, accuracy) in zip(_COLOURS, curve.accuracy.items(), strict=False):
        shown = [100 * value for value in accuracy]
        axes.plot(curve.radii, shown, color=colour, lw=2, marker="o", ms=4, label=model)
    if curve.marked is not None:
        axes.axvline(curve.marked, color="#9a9a9a", lw=1, ls=(0, (4, 3)), zorder=0)
        note = axes.text(curve.marked, 101, "as in the table", fontsize=8, color=_QUIET)
        note.set(ha="center", va="bottom")
    axes.set_title(curve.title, loc="left", fontsize=10, fontweight="bold", color=_DARK, pad=14)
    axes.set_xlabel("radius")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(-2, 101)
    axes.set_xlim(0, max(curve.radii) * 1.02)
    axes.grid(axis="y", color="#e8e8e8", lw=0.8)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(frameon=False, loc="upper right")
