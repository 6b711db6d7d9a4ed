"""One delta for many inputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastadv import _checks, balls
from fastadv.balls import Ball
from fastadv.reference import add_towards, box, compute_dtype, place_towards

_FORMAT = "fastadv.perturbation.1"
_BALLS: dict[str, type[Ball]] = {ball.order: ball for ball in (balls.Linf, balls.L2, balls.L1)}


@dataclass(frozen=True, eq=False)
class Perturbation:
    """A universal perturbation: delta (*shape), the shape of one sample, in `ball`."""

    delta: Tensor
    ball: Ball

    def apply(self, x: Tensor) -> Tensor:  # (N, *shape) -> (N, *shape)
        """clamp(x + delta) to the ball's bounds, every coordinate rounded towards x: what delta
        keeps of its ball, x_adv keeps exactly. (Where x or delta requires grad, it is the plain,
        differentiable sum, which may be off by a rounding.)"""
        _checks.data(x, "x")
        if x.shape[1:] != self.delta.shape:
            raise ValueError(
                f"`x` must be (N, {', '.join(map(str, self.delta.shape))}), got {tuple(x.shape)}"
            )
        radius = torch.zeros((), device=x.device)  # delta's own ball was settled when it was made
        _checks.inputs(x.detach(), radius, self.ball.bounds_for(x))
        delta = self.delta.to(x.device)
        if torch.is_grad_enabled() and (x.requires_grad or delta.requires_grad):
            lower, upper = (bound.to(x.dtype) for bound in box(self.ball.bounds_for(x), x))
            return torch.maximum(torch.minimum(x + delta.to(x.dtype), upper), lower)
        origin = x.detach().to(compute_dtype(x.dtype))
        delta = _shorten(delta.detach(), origin.dtype).expand_as(origin)
        bounds = box(self.ball.bounds_for(x), origin)
        return place_towards(add_towards(origin, delta), origin, *bounds, x.dtype)

    def norm(self) -> float:
        """||delta|| in the ball's norm, in float64."""
        return float(self.ball.norm(self.delta[None])[0])

    def __repr__(self) -> str:
        return f"Perturbation({tuple(self.delta.shape)}, norm={self.norm():.4g}, ball={self.ball})"

    def save(self, path: str | os.PathLike[str], facts: Mapping[str, str] | None = None) -> None:
        """Writes a safetensors file: the tensor `delta`, and in its metadata the ball and `facts`.

        An existing file is replaced only once the new one is whole. Raises FileNotFoundError
        where `path` is a folder or in none.
        """
        ball = {"order": self.ball.order, "radius": self.ball.radius, "bounds": self.ball.bounds}
        metadata = {**(facts or {}), "format": _FORMAT, "ball": json.dumps(ball)}
        target = Path(path)
        if target.is_dir() or not target.parent.is_dir():
            what = "a file's" if target.is_dir() else "in a folder that exists"
            raise FileNotFoundError(f"`path` must be {what}, got {os.fspath(path)!r}")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            save_file({"delta": self.delta.detach().cpu().contiguous()}, partial, metadata)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Perturbation:
        """Reads what `save` wrote, onto the CPU. Raises ValueError for any other file."""
        if Path(path).is_dir():
            raise ValueError(f"`path` must be a saved Perturbation, got the folder {str(path)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(
                        f"`path` must be a saved Perturbation, got {os.fspath(path)!r}"
                    )
                saved, delta = json.loads(metadata["ball"]), file.get_tensor("delta")
        except SafetensorError as error:
            raise ValueError(
                f"`path` must be a safetensors file, got {os.fspath(path)!r}: {error}"
            ) from error
        bounds = saved["bounds"]
        return cls(delta, _BALLS[saved["order"]](saved["radius"], bounds and tuple(bounds)))


def _shorten(delta: Tensor, dtype: torch.dtype) -> Tensor:
    """delta in `dtype`, rounded towards 0."""
    infinity = delta.new_tensor(math.inf)
    return place_towards(delta, torch.zeros_like(delta), -infinity, infinity, dtype)
