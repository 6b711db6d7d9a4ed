"""Memory: an address map with bounds and alignment, the bytes behind it, who touched them.

Every array that a kernel gets lies in a range of addresses of its own, far from all others: an
access one byte beyond an array's end meets no other array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.races import Races, Threads
from tests.emulator.ptx.types import UNSIGNED, Array

GLOBAL = 1 << 44  # the address of the first array; the next one's lies APART further
APART = 1 << 36
SHARED, LOCAL = 1 << 40, 1 << 42  # where generic addresses reach these
_ALIGNED = 256


@dataclass
class Access:
    """An instruction's accesses by `lanes`: `size` bytes from each of `offsets` in a Space, in
    global memory those of `arrays`."""

    lanes: Array
    offsets: Array
    size: int
    text: str
    arrays: Array | None = None

    def __post_init__(self) -> None:
        if (self.offsets % self.size).any():
            bad = int(self.offsets[self.offsets % self.size != 0][0])
            raise PtxError(f"misaligned: {self.size} bytes at byte {bad}: {self.text}")


class Space:
    """Bytes, and the races on them."""

    def __init__(self, name: str, size: int, granule: int, threads: Threads, races: bool) -> None:
        self.name, self.granule = name, granule
        self.bytes = np.full(-(-size // _ALIGNED) * _ALIGNED, 0xCD, np.uint8)
        self.races = Races(len(self.bytes) // granule, threads) if races else None

    def rows(self, size: int, count: int) -> Array:
        """The bytes as rows of `count` numbers of `size` bytes."""
        return np.asarray(self.bytes.view(UNSIGNED[size]).reshape(-1, count))

    def places(self, access: Access) -> Array:
        each = np.arange(max(access.size // self.granule, 1))
        return np.asarray(access.offsets[:, None] // self.granule + each)

    def load(self, access: Access, size: int, stamps: Array) -> Array:
        """(lanes, count): numbers of `size` bytes, checked for races."""
        if self.races:
            bad = self.races.read(self.places(access), access.lanes, stamps)
            self._report(bad, access, "reads what another thread wrote, without a barrier between")
        return np.asarray(self.rows(size, access.size // size)[access.offsets // access.size])

    def store(self, access: Access, values: Array, stamps: Array) -> None:
        """values (lanes, count), as bits."""
        rows = self.rows(values.dtype.itemsize, values.shape[1])
        index = access.offsets // access.size
        rows[index] = values
        if self.races:
            self._written(access, stamps)
            lost = (rows[index] != values).any(1)
            self._report(lost, access, "writes where another thread writes another value at once")

    def claim(self, access: Access, stamps: Array) -> None:
        """An asynchronous copy to these places begins: no one may touch them until it is there."""
        where = access.offsets[:, None] + np.arange(access.size)
        self.bytes[where] = 0xFF
        if self.races:
            self._written(access, stamps, pending=True)

    def arrive(self, access: Access, data: Array, stamps: Array) -> None:
        """The copy's bytes, (lanes, size), are there."""
        self.bytes[access.offsets[:, None] + np.arange(access.size)] = data
        if self.races:
            self.races.arrive(self.places(access), stamps)

    def update(self, access: Access, stamps: Array) -> None:
        """An atomic access: others of its kind may be at once."""
        if self.races:
            bad = self.races.update(self.places(access), access.lanes, stamps)
            self._report(bad, access, "updates what another thread touched, without a barrier")

    def _written(self, access: Access, stamps: Array, pending: bool = False) -> None:
        assert self.races is not None
        writes, reads = self.races.write(self.places(access), access.lanes, stamps, pending)
        self._report(writes, access, "writes what another thread wrote, without a barrier between")
        self._report(reads, access, "writes what another thread read, without a barrier between")

    def _report(self, bad: Array, access: Access, what: str) -> None:
        if bad.any():
            first = int(np.nonzero(bad)[0][0])
            raise PtxError(
                f"race in {self.name} memory: lane {int(access.lanes[first])} {what}, "
                f"{int(bad.sum())} lanes in all: {access.text}"
            )


class AddressMap:
    """The arrays of global memory: where each begins, and how long it is.

    An address is aligned as the array's own is, up to 256 bytes.
    """

    def __init__(self, sizes: Sequence[int], addresses: Sequence[int]) -> None:
        self.sizes = np.array(sizes or [0], np.int64)
        self.skews = np.array(addresses or [0], np.int64) % _ALIGNED
        rooms = -(-(self.sizes + self.skews + 1) // _ALIGNED) * _ALIGNED
        self.starts = np.concatenate([[0], np.cumsum(rooms)])[:-1]
        self.begins = self.starts + self.skews
        self.total = int(rooms.sum())

    def address(self, array: int) -> int:
        return GLOBAL + array * APART + int(self.skews[array])

    def offsets(self, addresses: Array, size: int, text: str) -> tuple[Array, Array]:
        """(which array, offsets in the space): checked for bounds. `size` bytes from each."""
        array, within = addresses // APART - GLOBAL // APART, addresses % APART
        known = (array >= 0) & (array < len(self.sizes))
        array = np.where(known, array, 0)
        at = within - self.skews[array]
        good = known & (at >= 0) & (at + size <= self.sizes[array])
        if not good.all():
            first = int(np.nonzero(~good)[0][0])
            where = (
                f"byte {int(at[first])} of an array of {int(self.sizes[array[first]])} bytes "
                f"(the {int(array[first]) + 1}. pointer)"
                if known[first]
                else f"the address {int(addresses[first]):#x}, where nothing is"
            )
            raise PtxError(f"out of bounds: {size} bytes at {where}: {text}")
        return array, self.starts[array] + within
