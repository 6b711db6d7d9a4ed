"""Several processes that share one delta, over torch.distributed, which the caller has started."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks:
    """The processes of `group`: None is the default group, where torch.distributed is initialised.

    One alone sends nothing. Raises ValueError for a group that this process is not in.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        running = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if running else 0
        self.count = dist.get_world_size(group) if running else 1
        if self.rank < 0 or (group is not None and not running):
            raise ValueError(f"`group` must be one that this process is in, got {group!r}")

    def require_alike(self, mine: tuple[object, ...] | None) -> None:
        """Raises ValueError on every rank unless all have the same to say of their first batch."""
        if self.count == 1:
            return
        said = self.gathered(mine)
        without = [rank for rank, one in enumerate(said) if one is None]
        if without:
            raise ValueError(f"`loader` must give every rank a batch, got none on ranks {without}")
        if len(set(said)) > 1:
            raise ValueError(f"the first batch must be alike on every rank, got {said}")

    def told(self, say: Callable[[], T]) -> T:
        """What `say` gives on the first rank, or the ValueError that it raises there, on all."""
        if self.count == 1:
            return say()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = say()
            except (ValueError, OSError) as error:
                said[1] = str(error)
        dist.broadcast_object_list(said, self._first, group=self.group)
        if said[1] is not None:
            raise ValueError(said[1])
        told: T = said[0]
        return told

    def totals(self, counts: list[int]) -> list[int]:
        """The sums over the ranks."""
        return [sum(each) for each in zip(*self.gathered(counts), strict=True)]

    def gathered(self, mine: T) -> list[T]:
        """What each rank has to say."""
        said = [mine] * self.count
        if self.count > 1:
            dist.all_gather_object(said, mine, group=self.group)
        return said

    def share_(self, t: Tensor) -> None:
        """t <- the first rank's, in place."""
        if self.count > 1:
            dist.broadcast(t, self._first, group=self.group)

    @property
    def _first(self) -> int:
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    def sum_(self, t: Tensor) -> Tensor:
        """t <- its sum over the ranks, the same bits on each."""
        if self.count > 1:
            dist.all_reduce(t, group=self.group)
        return t


def require_whole(loader: object, name: str = "loader") -> None:
    """Raises ValueError for a loader that gives each rank a part of the data."""
    parts = (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    if kinds & {"DistributedSampler", "BatchSamplerShard"}:  # torch's, accelerate's
        raise ValueError(
            f"`{name}` must give every rank all the data, in one order, got one that shards it: "
            "this algorithm is sequential, and v would differ from rank to rank"
        )
