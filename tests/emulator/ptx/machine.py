"""The machine: threads in lock step where they can be, barriers, and what a launch counts.

All threads of many blocks run as the lanes of numpy arrays. The lanes with the smallest program
counter run until the next label that a branch names, then the choice is made again: so lanes that
a branch parted meet again behind it. A block whose threads all stand at a barrier goes on, and its
time (see races.py) advances.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.memory import Access, AddressMap, Space
from tests.emulator.ptx.program import Program
from tests.emulator.ptx.races import BARRIER, Threads
from tests.emulator.ptx.types import SIGNED, TYPES, UNSIGNED, Array

if TYPE_CHECKING:
    from tests.emulator.ptx.copies import Copy

Step = Callable[["Machine", Array], None]


@dataclass
class Stats:
    """What ran. loaded, stored: bytes by the array's position among the arguments, where a warp's
    lanes at one address count as one. narrow: those of accesses below 16 B. executed: threads by
    opcode."""

    loaded: Counter[int] = field(default_factory=Counter)
    stored: Counter[int] = field(default_factory=Counter)
    narrow: Counter[int] = field(default_factory=Counter)
    executed: Counter[str] = field(default_factory=Counter)
    barriers: int = 0  # block-wide ones, summed over the blocks

    def by_argument(self, arguments: Sequence[int]) -> None:
        """Counts by array become counts by argument; a module's own variables are left out."""
        for counts in (self.loaded, self.stored, self.narrow):
            found = {arguments[i]: n for i, n in counts.items() if i < len(arguments)}
            counts.clear()
            counts.update(found)

    def warps(self, prefix: str) -> int:
        """How many warps ran an instruction that begins with `prefix`, each with all its lanes."""
        return sum(n for name, n in self.executed.items() if name.startswith(prefix)) // 32


class Machine:
    """Some of a grid's blocks: `blocks` are their indices (x, y, z)."""

    def __init__(
        self, program: Program, steps: list[Step], blocks: Array, grid: tuple[int, ...],
        block: tuple[int, ...], memory: Space, arrays: AddressMap, symbols: dict[str, int],
        parameters: dict[str, bytes], sizes: tuple[int, int], races: bool, stats: Stats,
        first: int,
    ) -> None:  # fmt: skip
        self.program, self.steps, self.stats, self.first = program, steps, stats, first
        self.per_block, self.blocks = int(np.prod(block)), len(blocks)
        self.lanes = self.per_block * self.blocks
        self.lane = np.arange(self.lanes)
        self.threads = Threads(self.lanes, self.per_block)
        self.arrays, self.memory, self.parameters, self.symbols = (
            arrays,
            memory,
            parameters,
            symbols,
        )
        shared, local = sizes
        self.shared_size, self.local_size = shared, local
        granule = smallest(program, "shared")
        self.room = -(-max(shared, 1) // 256) * 256
        self.shared = Space("shared", self.room * self.blocks, granule, self.threads, races)
        self.local = Space("local", max(local, 1) * self.lanes, 1, self.threads, False)
        self.registers: dict[str, Array] = {
            name: np.zeros(self.lanes, np.bool_)
            if kind == "pred"
            else np.full(self.lanes, 0xCDCDCDCDCDCDCDCD % (1 << 8 * TYPES[kind].size),
                         UNSIGNED[TYPES[kind].size])
            for name, kind in program.registers.items()
        }  # fmt: skip
        self._special = self._indices(blocks, grid, block)
        self.counter = np.zeros(self.lanes, np.int64)
        self.waits_at = np.full(self.lanes, -1)
        self.done = np.zeros(self.lanes, np.bool_)
        self.stamps = np.zeros(self.lanes, np.int64)
        self.position = 0  # the instruction that runs
        self.copies: list[Copy] = []  # cp.async in flight
        self.groups = np.zeros(self.lanes, np.int64)

    def _indices(
        self, blocks: Array, grid: tuple[int, ...], block: tuple[int, ...]
    ) -> dict[str, Array]:
        thread = self.lane % self.per_block
        found = {
            "%laneid": thread % 32,
            "%warpid": thread // 32,
            "%nwarpid": -(-self.per_block // 32),
        }
        position = np.stack(np.unravel_index(thread, block[::-1]))[::-1]
        for i, axis in enumerate("xyz"):
            found[f"%tid.{axis}"] = position[i]
            found[f"%ctaid.{axis}"] = blocks[:, i].repeat(self.per_block)
            found[f"%ntid.{axis}"], found[f"%nctaid.{axis}"] = block[i], grid[i]
        return {name: np.asarray(v).astype(np.uint64) for name, v in found.items()}

    def special(self, name: str) -> Array:
        """A special register, or a variable's address."""
        if name in self.symbols:
            return np.asarray(np.uint64(self.symbols[name]))
        if name in self._special:
            return self._special[name]
        raise PtxError(f"a special register is not known: {name}")

    def lanes_of(self, v: Array) -> Array:
        return v if v.shape else np.broadcast_to(v, (self.lanes,))

    def put(self, name: str, numbers: Array, active: Array) -> None:
        """Writes a register where `active`; narrower integers are extended by their sign."""
        if name == "_":
            return
        register = self.registers[name]
        v = np.asarray(numbers)
        if v.dtype != np.bool_ and v.dtype.itemsize != register.dtype.itemsize:
            kinds = SIGNED if v.dtype.kind == "i" else UNSIGNED
            v = v.astype(kinds[register.dtype.itemsize])
        np.copyto(register, v if v.dtype == np.bool_ else v.view(register.dtype), where=active)

    def put_at(self, name: str, numbers: Array, lanes: Array) -> None:
        """Writes a register of `lanes`; narrower integers are extended by their sign."""
        if name == "_":
            return
        register = self.registers[name]
        if numbers.dtype.itemsize != register.dtype.itemsize:
            kinds = SIGNED if numbers.dtype.kind == "i" else UNSIGNED
            numbers = numbers.astype(kinds[register.dtype.itemsize])
        register[lanes] = numbers.view(register.dtype)

    def tile(self, per_warp: Array) -> Array:
        """(32,) to (lanes,), the same in every warp."""
        return np.tile(per_warp, self.lanes // 32)

    def count(self, counts: Counter[int], access: Access) -> None:
        """The bytes of an access to global memory, by array; a warp's equal ones count once."""
        assert access.arrays is not None
        keys = (access.lanes // 32 << 40) + access.offsets
        once = np.unique(keys, return_index=True)[1]
        for array, n in zip(*np.unique(access.arrays[once], return_counts=True), strict=True):
            counts[int(array)] += int(n) * access.size
            if access.size < 16:
                self.stats.narrow[int(array)] += int(n) * access.size

    def run(self) -> None:
        leaders = sorted(set(self.program.labels.values()))
        with np.errstate(all="ignore"):
            while not self.done.all():
                ready = ~self.done & (self.waits_at < 0)
                if not ready.any():
                    self._release()
                    continue
                at = int(self.counter[ready].min())
                self._straight(at, ready & (self.counter == at), leaders)

    def _straight(self, at: int, active: Array, leaders: list[int]) -> None:
        """Runs from `at` to a branch, a barrier, the end or a label."""
        instructions = self.program.instructions
        stop = next((i for i in leaders if i > at), len(instructions))
        for i in range(at, stop):
            here = instructions[i]
            mask = active
            if here.guard:
                guard = self.registers[here.guard]
                mask = active & (~guard if here.negated else guard)
            lanes = int(np.count_nonzero(mask))
            self.stats.executed[here.opcode] += lanes
            if here.parts[0] in ("bra", "ret", "exit", "bar", "barrier"):
                self.counter[active] = i + 1
                if lanes:
                    self.position = i
                    self.steps[i](self, mask)
                if here.parts[1:2] != ("warp",):
                    return
            elif lanes:
                self.steps[i](self, mask)
        self.counter[active] = stop
        if stop == len(instructions):
            raise PtxError("a thread runs past the kernel's last instruction")

    def _release(self) -> None:
        """All live threads wait: their blocks' barriers open."""
        waits = self.waits_at.reshape(self.blocks, self.per_block)
        done = self.done.reshape(self.blocks, self.per_block)
        some = ~done.all(1)
        if (done.any(1) & some).any():
            raise PtxError("a barrier waits for threads that have ended")
        if (waits[some].min(1) != waits[some].max(1)).any():
            raise PtxError("a divergent barrier: a block's threads wait at different ones")
        self.stats.barriers += int(some.sum())
        opened = some.repeat(self.per_block)
        self.stamps[opened] = (self.stamps[opened] // BARRIER + 1) * BARRIER
        self.waits_at[opened] = -1


def smallest(program: Program, space: str) -> int:
    """The fewest bytes that an instruction accesses at once in a space: one place of Races."""
    sizes = [
        TYPES[i.parts[-1]].size
        for i in program.instructions
        if i.parts[0] in ("ld", "st", "atom", "red", "ldmatrix", "stmatrix")
        and (i.has(space) or not {"global", "shared", "param", "local", "const"} & set(i.parts))
        and i.parts[-1] in TYPES
    ]
    return min([4, *sizes])


def batches(grid: tuple[int, ...], threads: int, limit: int) -> list[Array]:
    """The grid's block indices (x, y, z), as many at once as `limit` threads hold."""
    every = [(x, y, z) for z, y, x in itertools.product(*(range(n) for n in grid[::-1]))]
    each = max(limit // threads, 1)
    return [np.array(every[i : i + each]) for i in range(0, len(every), each)]


def three(shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    return (*sizes, *[1] * (3 - len(sizes)))
