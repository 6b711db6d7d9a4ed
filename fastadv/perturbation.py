"""One delta for many inputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastadv import _checks, balls
from fastadv.balls import Ball
from fastadv.placement import Place, require_fit, require_mask, spread
from fastadv.reference import add_towards, box, compute_dtype, place_towards

_FORMAT = "fastadv.perturbation.1"
_BALLS: dict[str, type[Ball]] = {ball.order: ball for ball in (balls.Linf, balls.L2, balls.L1)}


@dataclass(frozen=True, eq=False)
class Perturbation:
    """A universal perturbation: delta (*shape), the shape of one sample, in `ball`.

    place: "tiles" repeats a smaller delta over the sample, cut at its ends; an offset puts it there
    once, one number a dimension; a mask (bool, broadcast to the sample, as (H, W)) says where it is
    not 0, and delta is (n,), the sample's numbers under the mask in their order. `whole` gives it
    as a sample meets it. per_class: delta is (classes, *shape), one for each label.
    """

    delta: Tensor
    ball: Ball
    place: Place = None
    per_class: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.place, str) and self.place != "tiles":
            raise ValueError(
                f"`place` must be 'tiles', an offset, a mask or None, got {self.place!r}"
            )
        if isinstance(self.place, Tensor):
            require_mask(self.place)

    def apply(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # (N, *shape) -> (N, *shape)
        """clamp(x + delta) to the ball's bounds, every coordinate rounded towards x: what delta
        keeps of its ball, x_adv keeps exactly (not the l2 and l1 norms of tiles, which add up).
        (Where x or delta requires grad, it is the plain, differentiable sum, which may be off by a
        rounding.) y: labels (N,), which choose where there is one delta a class."""
        _checks.data(x, "x")
        delta = self._over(x, y)
        _checks.inputs(x, self.ball)
        if torch.is_grad_enabled() and (x.requires_grad or delta.requires_grad):
            return self._sum(x, delta)
        origin = x.detach().to(compute_dtype(x.dtype))
        delta = _shorten(delta.detach(), origin.dtype).expand_as(origin)
        bounds = box(self.ball.bounds_for(x), origin)
        return place_towards(add_towards(origin, delta), origin, *bounds, x.dtype)

    def near(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # (N, *shape) -> (N, *shape)
        """`apply` without its checks of x, to a rounding: the plain clamp(x + delta), two passes in
        place of some twenty. A search goes by it."""
        return self._sum(x, self._over(x, y))

    def _sum(self, x: Tensor, delta: Tensor) -> Tensor:
        point = x + delta.to(x.dtype)
        if self.ball.bounds is None:
            return point
        lower, upper = self.ball.bounds
        if isinstance(lower, float) and isinstance(upper, float):
            return point.clamp_(lower, upper)
        low, high = (bound.to(x.dtype) for bound in box(self.ball.bounds_for(x), x))
        return point.clamp_(low, high)

    def _over(self, x: Tensor, y: Tensor | None) -> Tensor:
        """delta as x meets it: (1, *shape), or (N, *shape) with one a class."""
        delta = self._each.to(x.device)
        small = delta.shape[1:]
        if self.place is None and x.shape[1:] != small:
            raise ValueError(f"`x` must be (N, {', '.join(map(str, small))}), got {tuple(x.shape)}")
        require_fit(small, x.shape[1:], self.place, "delta")
        whole = spread(delta, x.shape[1:], self.place)
        return whole[class_labels(y, x, len(delta))] if self.per_class else whole

    def whole(self, shape: Sequence[int]) -> Tensor:  # (*shape), or (classes, *shape)
        """What delta is to a sample of `shape`: 0 where it has no place.

        Raises ValueError where it does not fit.
        """
        require_fit(self._each.shape[1:], tuple(shape), self.place, "delta")
        each = spread(self._each, tuple(shape), self.place)
        return each if self.per_class else each[0]

    @property
    def _each(self) -> Tensor:  # (classes or 1, *shape)
        return self.delta if self.per_class else self.delta[None]

    def norm(self) -> float:
        """||delta|| in the ball's norm, in float64; of one a class, the largest."""
        return float(self.ball.norm(self._each).max())

    def __repr__(self) -> str:
        place = self.place
        said = f"<mask {tuple(place.shape)}>" if isinstance(place, Tensor) else repr(place)
        form = "" if place is None else f", place={said}"
        form += ", per_class=True" if self.per_class else ""
        shape = tuple(self.delta.shape)
        return f"Perturbation({shape}, norm={self.norm():.4g}, ball={self.ball}{form})"

    def save(self, path: str | os.PathLike[str], facts: Mapping[str, str] | None = None) -> None:
        """Writes a safetensors file: the tensor `delta`, and `mask` where it has one; in the
        metadata the ball, the place and `facts`.

        An existing file is replaced only once the new one is whole. Raises FileNotFoundError
        where `path` is a folder or in none.
        """
        ball = {"order": self.ball.order, "radius": self.ball.radius, "bounds": self.ball.bounds}
        masked = isinstance(self.place, Tensor)
        form = {"place": "mask" if masked else self.place, "per_class": self.per_class}
        metadata = {**(facts or {}), "format": _FORMAT, "ball": json.dumps(ball)}
        if self.place is not None or self.per_class:
            metadata["form"] = json.dumps(form)
        tensors = {"delta": self.delta.detach().cpu().contiguous()}
        if isinstance(self.place, Tensor):
            tensors["mask"] = self.place.cpu().contiguous()
        target = Path(path)
        if target.is_dir() or not target.parent.is_dir():
            what = "a file's" if target.is_dir() else "in a folder that exists"
            raise FileNotFoundError(f"`path` must be {what}, got {os.fspath(path)!r}")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata)
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
                form = json.loads(metadata.get("form", "{}"))
                place = form.get("place")
                place = file.get_tensor("mask") if place == "mask" else place
        except SafetensorError as error:
            raise ValueError(
                f"`path` must be a safetensors file, got {os.fspath(path)!r}: {error}"
            ) from error
        bounds = saved["bounds"]
        ball = _BALLS[saved["order"]](saved["radius"], bounds and tuple(bounds))
        place = tuple(place) if isinstance(place, list) else place
        return cls(delta, ball, place, form.get("per_class", False))


def class_labels(y: Tensor | None, x: Tensor, classes: int) -> Tensor:  # (N,)
    """y, checked: the row of each sample in one delta a class."""
    if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.is_floating_point():
        came = "None" if y is None else f"{type(y).__name__}"
        came = f"{tuple(y.shape)} of {str(y.dtype)[6:]}" if isinstance(y, Tensor) else came
        raise ValueError(f"`y` must be class labels ({len(x)},) for one delta a class, got {came}")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"`y` must be from 0 to {classes - 1}, a delta a class, "
            f"got {int(y.min())} to {int(y.max())}"
        )
    return y.long().to(x.device)


def _shorten(delta: Tensor, dtype: torch.dtype) -> Tensor:
    """delta in `dtype`, rounded towards 0."""
    infinity = delta.new_tensor(math.inf)
    return place_towards(delta, torch.zeros_like(delta), -infinity, infinity, dtype)
