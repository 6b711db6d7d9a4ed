"""A delta smaller than its sample: repeated as tiles, placed once, or under a mask. `place` is
"tiles", an offset (one number a dimension of the sample), a mask (bool, broadcast to the sample:
delta is (n,), the numbers under it in their order) or None, where delta has the sample's shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastadv._checks import text

Place = str | tuple[int, ...] | Tensor | None
Shape = tuple[int, ...] | torch.Size


def require_mask(mask: object) -> Tensor:
    """`mask` itself. Raises unless it is a bool tensor that is true somewhere."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = str(mask.dtype)[6:] if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`mask` must be a torch.Tensor of bool, got {came}")
    if not bool(mask.any()):
        raise ValueError(f"`mask` must be true somewhere, got {text(mask.shape)} of False")
    return mask


def under(mask: Tensor, shape: Shape) -> Tensor:  # (n,)
    """Which of a sample's numbers, flattened, the mask is true for.

    Raises ValueError for a mask that does not broadcast to `shape`.
    """
    pairs = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.dim() > len(shape) or any(size not in (1, room) for size, room in pairs):
        raise ValueError(f"`mask` must broadcast to a sample {text(shape)}, got {text(mask.shape)}")
    return mask.expand(shape).flatten().nonzero()[:, 0]


def small_shape(shape: Shape, place: Place) -> tuple[int, ...]:
    """The shape of a delta for samples of `shape`, where `place` says it."""
    return (len(under(place, shape)),) if isinstance(place, Tensor) else tuple(shape)


def alike(a: Place, b: Place) -> bool:
    """Whether they are one place."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.cpu(), b.cpu())
    return type(a) is type(b) and a == b


def require_fit(small: Shape, shape: Shape, place: Place, name: str) -> None:
    """Raises ValueError where a delta of shape `small`, called `name`, has no place in `shape`."""
    where = f" at {text(place)}" if isinstance(place, tuple) else ""
    offset = place if isinstance(place, tuple) else (0,) * len(small)
    if place is None or isinstance(place, Tensor):
        fits = tuple(small) == small_shape(shape, place)
        where = "" if place is None else f" under a mask of {small_shape(shape, place)[0]}"
    else:
        fits = len(small) == len(shape) == len(offset) and all(
            size >= 1 and at >= 0 and at + size <= room
            for size, at, room in zip(small, offset, shape, strict=True)
        )
    if not fits:
        raise ValueError(f"`{name}` must fit into a sample {text(shape)}, got {text(small)}{where}")


def spread(delta: Tensor, shape: Shape, place: Place) -> Tensor:  # (K, *small) -> (K, *shape)
    """What delta adds to a sample: 0 where it has no place. Linear, and differentiable."""
    if isinstance(place, Tensor):
        flat = delta.new_zeros(len(delta), math.prod(shape))
        return flat.index_copy(1, under(place.to(delta.device), shape), delta).view(-1, *shape)
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
    if isinstance(place, Tensor):
        at = under(place.to(grads.device), grads.shape[1:])
        return grads.flatten(1).index_select(1, at)
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
