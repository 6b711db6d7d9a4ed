"""Memory that the engine's results live in, and return to: fresh pages cost more than a kernel.

A result of 8 MiB costs 2048 page faults: a tenth of the time of the convolution that fills it, and
more. Buffers are leased: one is free again when nothing but the pool holds it, so graphs that are
kept alive, and threads side by side, each have their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local
from typing import Any

import torch
from torch import Tensor

_use_count: Any = torch._C._storage_Use_Count
_KEPT = 512  # leases after which a buffer that no one took is given back
_SMALL = 1 << 16  # bytes below which malloc serves as well


class _Buffer:
    def __init__(self, size: int) -> None:
        self.storage = torch.UntypedStorage(size, device="cpu")  # type: ignore[no-untyped-call]
        self.size = size
        self.last = 0

    @property
    def free(self) -> bool:
        return bool(_use_count(self.storage._cdata) == 1)

    @property
    def ours(self) -> bool:
        """Not another process's too, since it was sent there, nor of another size."""
        return not self.storage.is_shared() and self.storage.nbytes() == self.size


class Pool:
    def __init__(self, small: int = _SMALL, kept: int = _KEPT) -> None:
        self._buffers: dict[int, list[_Buffer]] = {}
        self._lock = Lock()
        self._leases = 0
        self._small, self._kept = small, kept
        self._mine = local()  # the pool that lends in this one's place, to a thread

    @property
    def bytes(self) -> int:
        return sum(b.storage.nbytes() for buffers in self._buffers.values() for b in buffers)

    @contextmanager
    def replaced_by(self, other: Pool) -> Iterator[None]:
        """What this thread asks for meanwhile is the other pool's."""
        self._mine.other = other
        try:
            yield
        finally:
            self._mine.other = None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor, uninitialised, whose memory comes back when no one holds it."""
        if (other := getattr(self._mine, "other", None)) is not None:
            lent: Tensor = other.empty(shape, dtype)
            return lent
        size = dtype.itemsize
        strides: list[int] = []
        for extent in reversed(shape):
            strides.insert(0, size // dtype.itemsize)
            size *= extent
        if size < self._small:
            return torch.empty(shape, dtype=dtype, device="cpu")
        with self._lock:
            storage = self._take(size)
            return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, strides)

    def _take(self, size: int) -> torch.UntypedStorage:
        step = 1 << max(0, size.bit_length() - 3)  # an eighth of the size at most is left unused
        size = -(-size // step) * step
        self._leases += 1
        buffers = self._buffers.setdefault(size, [])
        buffers[:] = [b for b in buffers if b.ours]
        found = next((b for b in buffers if b.free), None)
        if found is None:
            self._give_back()
            found = _Buffer(size)
            self._buffers.setdefault(size, []).append(found)
        found.last = self._leases
        return found.storage

    def _give_back(self) -> None:
        oldest = self._leases - self._kept
        for size, buffers in list(self._buffers.items()):
            kept = [b for b in buffers if b.last > oldest or not b.free]
            self._buffers[size] = kept
            if not kept:
                del self._buffers[size]


pool = Pool()
