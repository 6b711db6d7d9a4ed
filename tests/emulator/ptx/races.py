"""Races: two threads at one place, one of them writing, and no barrier in between.

A place's last writer and readers are kept, each with the stamp of its time: a block's barriers
count in the upper half, the syncs of one warp in the lower. Accesses of one thread are ordered;
of one warp, by any sync between them; of one block, by a barrier; of two blocks, by nothing.
Where several threads read (or write the same value) before the next barrier, a code for all of
a warp, a block or the grid stands in their place.
"""

from __future__ import annotations

import numpy as np

from tests.emulator.ptx.types import Array

BARRIER = 1 << 24  # a stamp's upper half counts these
PENDING = 1 << 62  # the stamp of an asynchronous copy that no one has waited for
NOBODY = -1


class Threads:
    """Who stands behind a code: 0.. are the lanes, then every warp, every block, the grid."""

    def __init__(self, lanes: int, per_block: int) -> None:
        lane = np.arange(lanes)
        warps = per_block // 32 + bool(per_block % 32)
        block, warp = lane // per_block, lane // per_block * warps + lane % per_block // 32
        self.lane_warp, self.lane_block = warp, block
        self.warps, self.blocks = lanes + warp, lanes + int(warp[-1]) + 1 + block
        self.grid = int(self.blocks[-1]) + 1
        several = -2
        self.warp_of = np.full(self.grid + 2, several)
        self.block_of = np.full(self.grid + 2, several)
        self.warp_of[:lanes], self.block_of[:lanes] = warp, block
        self.warp_of[self.warps], self.block_of[self.warps] = warp, block
        self.block_of[self.blocks] = block


class Races:
    """`places`: how many; a place is the smallest number of bytes that the program accesses."""

    def __init__(self, places: int, threads: Threads) -> None:
        self.threads = threads
        self.writer, self.reader = (np.full(places, NOBODY, np.int32) for _ in range(2))
        self.written, self.read_at = (np.zeros(places, np.int64) for _ in range(2))
        self.atomic = np.zeros(places, np.bool_)  # the last write was an update

    def read(self, places: Array, lanes: Array, stamps: Array) -> Array:
        """Of each access (rows of places), whether it races with a write before it."""
        lane, now = lanes[:, None], stamps[:, None]
        bad = self._unordered(self.writer[places], self.written[places], lane, now)
        before = self.reader[places]
        others = self._unordered(before, self.read_at[places], lane, now)
        joined = self._join(before, lane) if others.any() else lane
        self._note(self.reader, places, np.where(others, joined, lane), lane)
        self.read_at[places] = np.broadcast_to(now, places.shape)
        return np.asarray(bad.any(1))

    def write(
        self, places: Array, lanes: Array, stamps: Array, pending: bool = False
    ) -> tuple[Array, Array]:
        """Of each access, whether it races with a write, and whether with a read before it."""
        lane, now = lanes[:, None], stamps[:, None]
        writes = self._unordered(self.writer[places], self.written[places], lane, now)
        reads = self._unordered(self.reader[places], self.read_at[places], lane, now)
        self._note(self.writer, places, np.broadcast_to(lane, places.shape), lane)
        self.written[places] = PENDING if pending else np.broadcast_to(now, places.shape)
        self.reader[places], self.atomic[places] = NOBODY, False
        return np.asarray(writes.any(1)), np.asarray(reads.any(1))

    def update(self, places: Array, lanes: Array, stamps: Array) -> Array:
        """A write that other updates may stand beside: whether it races with anything else."""
        lane, now = lanes[:, None], stamps[:, None]
        before = self.writer[places]
        writes = self._unordered(before, self.written[places], lane, now)
        reads = self._unordered(self.reader[places], self.read_at[places], lane, now)
        self._note(self.writer, places, np.where(writes, self._join(before, lane), lane), lane)
        bad = (writes & ~self.atomic[places]) | reads
        self.written[places], self.atomic[places] = np.broadcast_to(now, places.shape), True
        return np.asarray(bad.any(1))

    def arrive(self, places: Array, stamps: Array) -> None:
        """An asynchronous copy's bytes are there: its thread wrote them now."""
        self.written[places] = np.broadcast_to(stamps[:, None], places.shape)

    def _unordered(self, codes: Array, then: Array, lane: Array, now: Array) -> Array:
        found = (codes != NOBODY) & (codes != lane)
        if found.any():
            t = self.threads
            same_block = t.block_of[codes] == t.lane_block[lane]
            same_warp = t.warp_of[codes] == t.lane_warp[lane]
            found &= ~(same_block & (then // BARRIER < now // BARRIER))
            found &= ~(same_warp & (then < now))
        return np.asarray(found | ((then == PENDING) & (codes != NOBODY)))

    def _join(self, codes: Array, lane: Array) -> Array:
        """The code of those behind `codes` and a lane together."""
        t = self.threads
        wide = np.where(t.block_of[codes] == t.lane_block[lane], t.blocks[lane], t.grid)
        wide = np.where(t.warp_of[codes] == t.lane_warp[lane], t.warps[lane], wide)
        return np.where(codes == NOBODY, lane, wide)

    def _note(self, kept: Array, places: Array, codes: Array, lane: Array) -> None:
        """kept[places] = codes, joined where one instruction names a place more than once."""
        kept[places] = codes
        stood = kept[places]
        missed = stood != codes
        if not missed.any():
            return
        lanes = np.broadcast_to(lane, places.shape)[missed]
        joined = self._join(stood[missed], lanes)
        widest = np.maximum(joined, codes[missed])
        order = np.argsort(widest, kind="stable")  # the widest code is written last
        kept[places[missed][order]] = widest[order]
