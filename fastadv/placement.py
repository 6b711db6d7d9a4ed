"""A delta smaller than its sample: repeated as tiles, or placed once. `place` is "tiles", an offset
(one number a dimension of the sample) or None, where delta has the sample's own shape."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastadv._checks import text

Place = str | tuple[int, ...] | None
Shape = tuple[int, ...] | torch.Size


def require_fit(small: Shape, shape: Shape, place: Place, name: str) -> None:
    """Raises ValueError where a delta of shape `small`, called `name`, has no place in `shape`."""
    offset = place if isinstance(place, tuple) else (0,) * len(small)
    if place is None:
        fits = tuple(small) == tuple(shape)
    else:
        fits = len(small) == len(shape) == len(offset) and all(
            size >= 1 and at >= 0 and at + size <= room
            for size, at, room in zip(small, offset, shape, strict=True)
        )
    if not fits:
        where = f" at {text(place)}" if isinstance(place, tuple) else ""
        raise ValueError(f"`{name}` must fit into a sample {text(shape)}, got {text(small)}{where}")


def spread(delta: Tensor, shape: Shape, place: Place) -> Tensor:  # (K, *small) -> (K, *shape)
    """What delta adds to a sample: 0 where it has no place. Linear, and differentiable."""
    if isinstance(place, tuple):
        ends = zip(place, delta.shape[1:], shape, strict=True)
        sides = [(at, room - at - size) for at, size, room in ends]
        return pad(delta, [n for side in reversed(sides) for n in side])
    if place is None:
        return delta
    times = [-(-room // size) for size, room in zip(delta.shape[1:], shape, strict=True)]
    whole = delta.repeat(1, *times)
    return whole[(slice(None), *(slice(room) for room in shape))]


def gather(grads: Tensor, small: Shape, place: Place) -> Tensor:  # (N, *shape) -> (N, *small)
    """The gradient by delta of what is `grads` by spread(delta): its transpose, sums over tiles."""
    if isinstance(place, tuple):
        ends = zip(place, small, strict=True)
        return grads[(slice(None), *(slice(at, at + size) for at, size in ends))].contiguous()
    if place is None:
        return grads
    rest = [-room % size for size, room in zip(small, grads.shape[1:], strict=True)]
    whole = pad(grads, [n for end in reversed(rest) for n in (0, end)])
    for dim, size in enumerate(small, 1):
        whole = whole.reshape(*whole.shape[:dim], -1, size, *whole.shape[dim + 1 :]).sum(dim)
    return whole
