"""One delta for many inputs."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastadv import balls
from fastadv.balls import Ball
from fastadv.reference import box

_FORMAT = "fastadv.perturbation.1"
_BALLS: dict[str, type[Ball]] = {ball.order: ball for ball in (balls.Linf, balls.L2, balls.L1)}


@dataclass(frozen=True, eq=False)
class Perturbation:
    """A universal perturbation: delta (*shape), the shape of one sample, in `ball`."""

    delta: Tensor
    ball: Ball

    def apply(self, x: Tensor) -> Tensor:  # (N, *shape) -> (N, *shape)
        """clamp(x + delta) to the ball's bounds."""
        if x.shape[1:] != self.delta.shape:
            raise ValueError(
                f"`x` must be (N, {', '.join(map(str, self.delta.shape))}), got {tuple(x.shape)}"
            )
        x_adv = x + self.delta.to(x.device, x.dtype)
        bounds = self.ball.bounds_for(x)
        if bounds is None:
            return x_adv
        lower, upper = box(bounds, x)
        return torch.maximum(torch.minimum(x_adv, _inwards(upper, x, -1)), _inwards(lower, x, 1))

    def norm(self) -> float:
        """||delta|| in the ball's norm, in float64."""
        return float(self.ball.norm(self.delta[None])[0])

    def __repr__(self) -> str:
        return f"Perturbation({tuple(self.delta.shape)}, norm={self.norm():.4g}, ball={self.ball})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file: the tensor `delta`, and the ball in its metadata.

        An existing file is replaced only once the new one is whole.
        """
        ball = {"order": self.ball.order, "radius": self.ball.radius, "bounds": self.ball.bounds}
        metadata = {"format": _FORMAT, "ball": json.dumps(ball)}
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            save_file({"delta": self.delta.detach().cpu().contiguous()}, partial, metadata)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Perturbation:
        """Reads what `save` wrote, onto the CPU. Raises ValueError for any other file."""
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


def _inwards(bound: Tensor, x: Tensor, side: int) -> Tensor:
    """The bound in the dtype of x, rounded towards `side` (1: up): it is not passed."""
    nearest = bound.to(x.dtype)
    beyond = side * (nearest.to(bound.dtype) - bound) < 0
    return torch.where(
        beyond, torch.nextafter(nearest, torch.full_like(nearest, side * math.inf)), nearest
    )
