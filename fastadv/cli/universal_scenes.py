"""How python -m fastadv universal judges a segmentation model's perturbation, and its targets."""

from __future__ import annotations

import base64
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich import box
from rich.table import Table
from safetensors import safe_open
from torch import Tensor, nn

from fastadv.cli.arguments import Mistake, naming
from fastadv.cli.data import Data
from fastadv.cli.task import require_labels
from fastadv.cli.universal_methods import Batches, Options
from fastadv.evaluation import plots
from fastadv.evaluation.report import percent
from fastadv.objectives import Objective, pixels
from fastadv.perturbation import Perturbation
from fastadv.universal import PixelRates, Remove, measure_pixels
from fastadv.universal.scenes import Target, goal_of
from fastadv.universal.state import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Scenes:
    """Of logits (N, classes, H, W): how much is seen as `target` has it."""

    model: nn.Module
    target: Target
    ignore_index: int

    @property
    def objective(self) -> Objective:
        return pixels(ignore_index=self.ignore_index)

    def check(self, logits: Tensor, y: Tensor | None, target: str) -> None:
        """Before the search: Mistake for a target, or labels of all samples, that do not go with
        one sample's logits (1, classes, H, W). target: which option it is from."""
        if self.target is not None:
            with naming(target):
                goal_of(self.target, logits, None, self.ignore_index)
        with naming("--data"):
            require_labels(self.objective, logits, y, "y")

    def rates(self, uap: Perturbation, batches: Batches) -> PixelRates:
        return measure_pixels(
            uap, self.model, batches, target=self.target, ignore_index=self.ignore_index
        )

    def settings(self) -> dict[str, object]:
        """What the run's result depends on."""
        target = self.target
        said = digest(target) if isinstance(target, Tensor) else repr(target)
        return {"target": said, "ignore_index": self.ignore_index}

    def facts(self) -> dict[str, str]:
        """What a saved perturbation is to say of what it was made for."""
        return {"target": _packed(self.target), "ignore_index": str(self.ignore_index)}

    def outcome(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        """What --apply writes of a batch."""
        return {"prediction": self.model(x_adv.clone()).argmax(1).to(torch.int16).cpu()}

    def figure(self, uap: Perturbation, x: Tensor, y: Tensor | None) -> Figure:
        x_adv = uap.apply(x)
        before, after = self.model(x.clone()), self.model(x_adv.clone())
        goal = goal_of(self.target, before, y, self.ignore_index)
        rows = {"seen": before.argmax(1), "seen with it": after.argmax(1)}
        if self.target is not None:
            rows["target"] = goal.labels
        elif y is not None:
            rows["labels"] = goal.labels
        return plots.scenes(uap.whole(x.shape[1:]), x, x_adv, rows)

    def table(self, rates: dict[str, dict[str, PixelRates]]) -> Table:
        """What there is without it, too: clean."""
        every = [one for parts in rates.values() for one in parts.values()]
        names = ["success", "accuracy", "miou", "hidden", "preserved"]
        names = [name for name in names if any(getattr(one, name) is not None for one in every)]
        goal = "other than y" if self.target is None else "as the target has them"
        note = f"success: the share of pixels predicted {goal}; pixels: the share predicted as y"
        table = Table(box=box.SIMPLE_HEAD, caption=note, caption_justify="left")
        for column in ("", "data", "samples", *names):
            heading = {"accuracy": "pixels", "miou": "mIoU"}.get(column, column)
            table.add_column(heading, justify="left" if column in ("", "data") else "right")
        for part, one in next(iter(rates.values())).items():
            clean = [one.clean, one.clean_accuracy, one.clean_miou]
            cells = [percent(value) for value in clean[: len(names)]]
            table.add_row("clean", part, str(one.samples), *cells)
        for name, parts in rates.items():
            for part, one in parts.items():
                cells = [percent(getattr(one, column)) for column in names]
                table.add_row(name, part, str(one.samples), *cells)
        return table


def target_of(options: Options, own: Data) -> Target:
    """--scene's or --remove's, which are taken out of the options; None without."""
    scene, remove = options.pop("scene", None), options.pop("remove", None)
    if scene is not None:
        return _scene(scene, own)
    return None if remove is None else Remove(remove)


def saved_target(file: str) -> tuple[Target, int | None]:
    """(target, ignore index) that a saved perturbation was made for; None where it does not say."""
    with safe_open(file, framework="pt") as saved:
        facts = saved.metadata()
    if "target" not in facts:
        return None, None
    return _unpacked(facts["target"], file), int(facts["ignore_index"])


def _scene(what: str, own: Data) -> Tensor:
    if what.isdecimal():
        number = int(what)
        if own.y is None or own.y.dim() != 3:
            raise Mistake(f"--scene {what} is a sample's y, but --data has no label maps (N, H, W)")
        if number >= len(own.y):
            raise Mistake(f"--scene must be from 0 to {len(own.y) - 1}, a sample's, got {what}")
        return own.y[number]
    path = Path(what)
    if path.suffix != ".npy" or not path.is_file():
        raise Mistake(f"--scene must be a sample's number or an existing .npy file, got {what!r}")
    try:
        labels = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Mistake(f"--scene {what} cannot be read: {error}") from error
    if labels.dtype.kind not in "iu" or labels.ndim != 2:
        raise Mistake(
            f"--scene {what} must hold whole numbers (H, W), got {labels.dtype} {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _packed(target: Target) -> str:
    if isinstance(target, Remove):
        return json.dumps({"remove": target.label, "weight": target.weight})
    if target is None:
        return json.dumps(None)
    written = io.BytesIO()
    np.save(written, target.cpu().numpy(), allow_pickle=False)
    return json.dumps({"scene": base64.b64encode(zlib.compress(written.getvalue())).decode()})


def _unpacked(text: str, file: str) -> Target:
    try:
        said = json.loads(text)
        if said is None:
            return None
        if "remove" in said:
            return Remove(int(said["remove"]), float(said["weight"]))
        labels = io.BytesIO(zlib.decompress(base64.b64decode(said["scene"])))
        return torch.from_numpy(np.load(labels, allow_pickle=False))
    except (ValueError, TypeError, KeyError, EOFError, zlib.error) as error:
        raise Mistake(f"--apply {file} names a target that cannot be read: {error}") from error
