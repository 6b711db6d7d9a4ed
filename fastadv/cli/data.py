"""A person's own data: --data, in the formats that NumPy, torch and safetensors write."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastadv.cli import models
from fastadv.cli.arguments import Mistake

Arrays = Mapping[str, Any]  # of NumPy arrays or tensors

FORMATS = (".npz", ".npy", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Data:
    """x (N, *shape), floating; y and target as the objective takes them; what was done to x."""

    x: Tensor
    y: Tensor | None
    target: Tensor | None
    channels_last: bool
    notes: tuple[str, ...]

    def digest(self) -> str:
        """Of every value."""
        total = hashlib.sha256()
        for values in (self.x, self.y, self.target):
            if values is not None:
                total.update(f"{values.dtype} {tuple(values.shape)}".encode())
                total.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()


def load(
    files: Sequence[str],
    x_key: str | None,
    y_key: str | None,
    target_key: str | None,
    *,
    channels_last: bool,
    double: bool,
) -> Data:
    """Reads one file with keys, or two .npy files: x and y."""
    arrays = _arrays(files)
    x = _take(arrays, x_key or "x", files)
    notes: list[str] = []
    x = _floating(x, notes, torch.float64 if double else torch.float32)
    if channels_last:
        if x.dim() != 4:
            raise Mistake(f"--channels-last-data needs x of shape (N, H, W, C), got {_shape(x)}")
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.dim() < 1 or not len(x):
        raise Mistake(f"--data must hold at least one sample (N, ...), got x of shape {_shape(x)}")
    y = _take(arrays, y_key or "y", files) if y_key or "y" in arrays else None
    target = _take(arrays, target_key, files) if target_key else None
    for name, labels in (("y", y), ("target", target)):
        if labels is not None and (labels.dim() < 1 or len(labels) != len(x)):
            raise Mistake(
                f"--data: {name} must have {len(x)} entries, one a sample of x, "
                f"got shape {_shape(labels)}"
            )
    return Data(x, _labels(y), _labels(target), channels_last, tuple(notes))


def _arrays(files: Sequence[str]) -> Arrays:
    if len(files) == 1:
        return _read(Path(files[0]))
    if len(files) > 2 or any(Path(file).suffix != ".npy" for file in files):
        raise Mistake(
            f"--data must be one file, or two .npy files (x and y), got {' '.join(files)}"
        )
    return {name: _read(Path(file))["x"] for name, file in zip("xy", files, strict=True)}


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise Mistake(f"--data must name an existing file, got {str(path)!r}")
    if path.suffix not in FORMATS:
        raise Mistake(f"--data must end in {', '.join(FORMATS)}, got {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pt", ".pth"):
            return _named(models.tensors(path), path)
        loaded = np.load(path, allow_pickle=False)
        return {"x": loaded} if isinstance(loaded, np.ndarray) else loaded
    except (pickle.UnpicklingError, ValueError) as error:
        raise Mistake(
            f"--data {path} must hold arrays of numbers: it is no such file, or has other objects"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Mistake(f"--data {path} cannot be read: {reason[0]}") from error


def _named(loaded: object, path: Path) -> Arrays:
    """What torch.save wrote: a dictionary, (x, y), or x."""
    if isinstance(loaded, Tensor):
        loaded = (loaded,)
    if isinstance(loaded, (tuple, list)) and 1 <= len(loaded) <= 2:
        loaded = dict(zip("xy", loaded, strict=False))
    if isinstance(loaded, Mapping):
        return {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    raise Mistake(
        f"--data {path} must hold a dictionary of tensors, (x, y) or x, got {type(loaded).__name__}"
    )


def _take(arrays: Arrays, key: str, files: Sequence[str]) -> Tensor:
    if key not in arrays:
        have = ", ".join(repr(name) for name in arrays) or "nothing"
        raise Mistake(f"--data {' '.join(files)} must hold the key {key!r}, got {have}")
    try:
        array = arrays[key]  # an .npz file is read here
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Mistake(f"--data: {key} in {files[0]} cannot be read: {error}") from error
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "fiub":
        raise Mistake(f"--data: {key} must hold numbers, got dtype {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native))


def _floating(x: Tensor, notes: list[str], dtype: torch.dtype) -> Tensor:
    if x.dtype == torch.uint8:
        notes.append("x was uint8 and is divided by 255")
        return x.to(dtype) / 255
    if not x.is_floating_point():
        raise Mistake(f"--data: x must be floating or uint8 (pixels), got {str(x.dtype)[6:]}")
    if x.dtype != dtype:
        notes.append(f"x was {str(x.dtype)[6:]} and is taken as {str(dtype)[6:]}")
    return x.to(dtype)


def _labels(y: Tensor | None) -> Tensor | None:
    """Integers of any width as int64; probabilities as they are."""
    if y is None or y.is_floating_point() or y.dtype == torch.bool:
        return y
    return y.long()


def _shape(t: Tensor) -> str:
    return str(tuple(t.shape))
