"""The folder that a run writes to: parts while it runs, the results once it is whole.

Each finished batch is a safetensors file in unfinished/, moved there whole, so that a run may stop
at any moment and go on later. unfinished/run.json says which run they belong to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastadv.cli.arguments import Mistake
from fastadv.confusion import Confusion
from fastadv.evaluation.report import Report, save_json
from fastadv.evaluation.scores import Scores, total

_COLUMNS = ("wrong", "changed", "success", "feasible", "distance")
_CONFUSIONS = ("clean_confusion", "confusion")

Run = Mapping[str, object]  # the settings that fix a run's result


@dataclass(frozen=True)
class Part:
    """One batch: x_adv (N, *shape), its scores, and the model's mistakes on x (N,).

    clean_confusion: of segmentation, on x.
    """

    x_adv: Tensor
    clean_wrong: Tensor
    scores: Scores
    clean_confusion: Confusion | None = None


class Folder:
    """`folder`, opened for the run `run`; Mistake rather than touch what another left there."""

    names: ClassVar[tuple[str, ...]]  # of the files that a finished run leaves beside its report

    def __init__(self, folder: Path, run: Run, *, overwrite: bool, resume: bool) -> None:
        self.folder, self._run = folder, run
        self._parts = folder / "unfinished"
        if folder.exists() and not folder.is_dir():
            raise Mistake(f"--out must be a folder, got the file {str(folder)!r}")
        self.complete = False
        if overwrite:
            self._clear()
        elif self._report.exists():
            if not resume:
                raise Mistake(
                    f"--out {folder} holds results already: give another folder, or --overwrite"
                )
            self._same(json.loads(self._report.read_text()).get("run", {}))
            self.complete = True
        elif self._settings.exists():
            if not resume:
                raise Mistake(
                    f"--out {folder} holds an unfinished run: give --resume to go on with it, "
                    "or --overwrite to start again"
                )
            self._same(json.loads(self._settings.read_text()))
        if not self.complete:
            self._begin()

    def close(self, report: Mapping[str, object]) -> Path:
        """Writes report.json, and drops what an unfinished run keeps."""
        save_json(self._report, {**report, "run": dict(self._run)})
        shutil.rmtree(self._parts)
        return self._report

    @property
    def _report(self) -> Path:
        return self.folder / "report.json"

    @property
    def _settings(self) -> Path:
        return self._parts / "run.json"

    def _clear(self) -> None:
        """Only what this command writes: a person's other files stay."""
        for name in ("report.json", *self.names):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)

    def _begin(self) -> None:
        for name in self.names:
            if (self.folder / name).exists():
                raise Mistake(
                    f"--out {self.folder} holds {name} already: give another folder, or --overwrite"
                )
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            save_json(self._settings, dict(self._run))
        except OSError as error:
            raise Mistake(
                f"--out {self.folder} cannot be written: {error.strerror or error}"
            ) from error

    def _same(self, other: Run) -> None:
        """Raises unless the run left in the folder is this one."""
        mine = json.loads(json.dumps(dict(self._run)))
        for name in sorted({*mine, *other}):
            was, now = other.get(name), mine.get(name)
            if was != now:
                what = f"{name} was {was}, now it is {now}"
                if name.endswith("_sha256"):
                    what = f"the values of the {name.removesuffix('_sha256')} are not the same"
                raise Mistake(f"--resume must go on with the same run in {self.folder}: {what}")


class Results(Folder):
    """What `attack` writes."""

    names = ("adversarial.npz", "adversarial.safetensors")

    def part(self, start: int) -> Part | None:
        """The batch that starts at sample `start`, if it is done."""
        path = self._path(start)
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            cost = file.metadata()
        before, after = (
            Confusion(tensors[name]) if name in tensors else None for name in _CONFUSIONS
        )
        scores = Scores(
            **{name: tensors[name] for name in _COLUMNS},
            seconds=float(cost["seconds"]),
            forwards=int(cost["forwards"]),
            confusion=after,
        )
        return Part(tensors["x_adv"], tensors["clean_wrong"], scores, before)

    def keep(self, start: int, part: Part) -> None:
        """Writes a finished batch."""
        tensors = {name: getattr(part.scores, name) for name in _COLUMNS}
        tensors |= {"x_adv": part.x_adv, "clean_wrong": part.clean_wrong}
        both = zip(_CONFUSIONS, (part.clean_confusion, part.scores.confusion), strict=True)
        tensors |= {name: one.counts for name, one in both if one is not None}
        cost = {"seconds": repr(part.scores.seconds), "forwards": str(part.scores.forwards)}
        own = _own(tensors)
        write(self._path(start), lambda path: save_file(own, path, cost))

    def finish(self, tensors: Mapping[str, Tensor], report: Report, form: str) -> list[Path]:
        """Writes adversarial.npz (or .safetensors) and report.json, and drops the parts."""
        target = self.folder / f"adversarial.{form}"
        own = _own(tensors)
        if form == "npz":
            arrays = {name: value.numpy() for name, value in own.items()}
            write(target, lambda path: save_npz(path, arrays))
        else:
            write(target, lambda path: save_file(own, path))
        return [target, self.close(report.to_dict())]

    def _path(self, start: int) -> Path:
        return self._parts / f"{start:09d}.safetensors"


def join(parts: list[Part]) -> Part:
    """All samples, in order."""
    return Part(
        torch.cat([part.x_adv for part in parts]),
        torch.cat([part.clean_wrong for part in parts]),
        Scores.join([part.scores for part in parts]),
        total(part.clean_confusion for part in parts),
    )


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own: safetensors refuses what is shared, as wrong and success are."""
    return {
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays, nothing that would have to be unpickled."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write(target: Path, write: Callable[[Path], object]) -> None:
    """All of a file or nothing of it, whenever the process ends."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise Mistake(f"--out: {target} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
