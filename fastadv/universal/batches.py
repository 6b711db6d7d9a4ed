"""What a loader gives, checked: batches (x, y), or x alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from fastadv import _checks
from fastadv.balls import Ball

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


def unpack(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """(x, y), y None where there is none. Raises TypeError for anything else."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2:
        return batch[0], _checks.labels(batch[1], "y") if len(batch) == 2 else None
    raise TypeError(f"`loader` must give (x, y) or x, got a {type(batch).__name__}")


def require_loader(loader: object, name: str = "loader") -> None:
    """Raises TypeError for a tensor, which would be taken sample by sample."""
    if isinstance(loader, Tensor):
        raise TypeError(f"`{name}` must give batches, got a tensor: wrap it, as in [x] or [(x, y)]")


def require_some(seen: int, again: bool, name: str = "loader") -> None:
    """Raises ValueError where a loader gave no sample."""
    if not seen:
        used_up = ": is it an iterator that the first epoch used up?" if again else ""
        raise ValueError(f"`{name}` must give batches in every epoch, got none{used_up}")


def samples(
    loader: Iterable[Batch],
    ball: Ball,
    name: str = "loader",
    again: bool = False,
    some: bool = True,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches that have a sample, as (x, y), detached, finite and within the ball's bounds.

    Raises as an attack would on a batch, and ValueError where there was none and `some` is needed.
    """
    seen = 0
    for batch in loader:
        x, y = unpack(batch)
        _checks.data(x, "x")
        if len(x):
            x = x.detach().clone() if x.is_inference() else x.detach()
            _checks.inputs(x, ball)
            seen += len(x)
            yield x, y
    if some:
        require_some(seen, again, name)
