"""What a search writes as it goes, so that a killed run goes on to the same result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastadv.attack import Attack
from fastadv.objectives import as_objective
from fastadv.universal.ranks import Ranks

_FORMAT = "fastadv.state.1"

Kept = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, on the CPU, and what JSON holds


@dataclass(frozen=True)
class State:
    """The file at `path` of a run whose result `settings` fix; None keeps nothing.

    ranks: which share one file, that of the first; None: this process has its own.
    """

    path: str | os.PathLike[str] | None
    settings: Mapping[str, str]
    ranks: Ranks | None = None

    def keep(self, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        """Writes both: all of the file or nothing of it, whenever the process ends."""
        if self.path is None or (self.ranks is not None and self.ranks.rank > 0):
            return
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"format": _FORMAT, "facts": json.dumps({**facts, "settings": self.settings})}
        target = Path(self.path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            save_file(own, partial, metadata)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def kept(self) -> Kept | None:
        """What there is to go on from, on every rank.

        Raises ValueError for another run's file, and for what is no such file; FileNotFoundError
        where `path` is a folder or in none (on several ranks a ValueError).
        """
        return self._kept() if self.ranks is None else self.ranks.told(self._kept)

    def _kept(self) -> Kept | None:
        if self.path is None:
            return None
        target = Path(self.path)
        if target.is_dir() or not target.parent.is_dir():  # before hours of work are lost to it
            what = "a file's" if target.is_dir() else "in a folder that exists"
            raise FileNotFoundError(f"`state` must be {what}, got {os.fspath(self.path)!r}")
        if not target.exists():
            return None
        tensors, facts = _read(target)
        settings = facts["settings"]
        for name in sorted({*self.settings, *settings}):
            was, now = settings.get(name), self.settings.get(name)
            if was != now:
                raise ValueError(
                    f"`state` must be of this run: its {name} was {was}, now it is {now}"
                )
        return tensors, facts


def named(attack: Attack) -> Attack:
    """A setting that stands for an attack: of a callable objective another process would print
    another address."""
    return replace(attack, objective=as_objective(attack.objective))


def require_at_most(done: int, asked: int, name: str) -> None:
    """Raises ValueError for a state beyond what is asked for, which no run could go back from."""
    if done > asked:
        raise ValueError(f"`state` must be of at most {asked} {name}, as `{name}` are, got {done}")


def digest(t: Tensor | None) -> str:
    """A setting that stands for a tensor's values."""
    if t is None:
        return "None"
    values = t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    total = hashlib.sha256(values.data).hexdigest()
    return f"{str(t.dtype)[6:]} {tuple(t.shape)} {total[:16]}"


def _read(path: Path) -> Kept:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"`state` must be what such a run saved, got {os.fspath(path)!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`state` cannot be read, {os.fspath(path)!r}: {error}") from error
    return tensors, json.loads(metadata["facts"])
