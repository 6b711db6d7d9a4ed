"""run: a kernel of a PTX module on arrays."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.families import compile_instruction
from tests.emulator.ptx.machine import Machine, Stats, Step, batches, smallest, three
from tests.emulator.ptx.memory import AddressMap, Space
from tests.emulator.ptx.program import Parameter, Program, parse
from tests.emulator.ptx.races import Threads
from tests.emulator.ptx.types import TYPES, Array, Type

Argument = np.ndarray | torch.Tensor | int | float | None  # None: a null pointer


@dataclass(frozen=True)
class Struct:
    """A struct that is passed by value: "u64 u64 b8" and its members, laid out as C does."""

    types: str
    members: tuple[Argument, ...]


@lru_cache(maxsize=64)
def _compiled(ptx: str, kernel: str) -> tuple[Program, list[Step]]:
    program = parse(ptx, kernel)
    return program, [compile_instruction(program, ins) for ins in program.instructions]


def run(
    ptx: str,
    args: Sequence[Argument | Struct],
    grid: int | Sequence[int],
    block: int | Sequence[int],
    *,
    shared_bytes: int = 0,
    kernel: str = "",
    races: bool = True,
    lanes: int = 16384,
) -> Stats:
    """Runs a kernel on arrays (NumPy's or torch's, dense, updated in place), numbers and structs.

    `block`: threads. `shared_bytes`: dynamic shared memory. `kernel`: its name, or a part that no
    other kernel's name holds. `lanes`: how many threads run at once. Pointers that Triton adds at
    the end may be left out. Raises PtxError on an access out of bounds, misaligned or racing, on
    a barrier that not all threads reach, on an instruction that is not known.
    """
    program, steps = _compiled(ptx, kernel)
    sizes, shape = three(grid), three(block)
    threads = int(np.prod(shape))
    if program.threads and program.threads != threads:
        raise PtxError(f"`block` must be of {program.threads} threads, got {threads}")
    arrays = _Arrays(program, args)
    memory = Space("global", arrays.map.total, smallest(program, "global"),
                   Threads(int(np.prod(sizes)) * threads, threads), races)  # fmt: skip
    arrays.copy_in(memory)
    layout = _layout(program, shared_bytes)
    symbols = {**layout.symbols, **arrays.symbols}
    stats, first = Stats(), 0
    for blocks in batches(sizes, threads, lanes):
        machine = Machine(program, steps, blocks, sizes, shape, memory, arrays.map, symbols,
                          arrays.parameters, (layout.shared, layout.local), races, stats,
                          first)  # fmt: skip
        machine.run()
        first += machine.lanes
    arrays.copy_out(memory)
    stats.by_argument(arrays.arguments)
    return stats


class _Arrays:
    """The arguments: arrays in the address map, all of them as the parameters' bytes."""

    def __init__(self, program: Program, args: Sequence[Argument | Struct]) -> None:
        missing = program.parameters[len(args) :]
        if len(args) > len(program.parameters) or any(p.kind != "u64" for p in missing):
            raise PtxError(f"{len(program.parameters)} arguments are expected, got {len(args)}")
        self.bytes: list[Array] = []
        self.arguments: list[int] = []  # the position of each array's argument
        where: dict[tuple[int, int], int] = {}
        index: dict[int, int] = {}  # of an object's array
        for i, argument in enumerate(_flat(args)):
            if isinstance(argument, np.ndarray | torch.Tensor):
                view = _bytes_of(argument)
                key = (view.ctypes.data, view.nbytes)
                if key not in where:
                    where[key] = len(self.bytes)
                    self.bytes.append(view)
                    self.arguments.append(i)
                index[id(argument)] = where[key]
        variables = [v for v in program.variables.values() if v.space in ("global", "const")]
        self._constants = [np.frombuffer(v.data, np.uint8) for v in variables]
        self.map = AddressMap(
            [*(a.nbytes for a in self.bytes), *(a.nbytes for a in self._constants)],
            [*(a.ctypes.data for a in self.bytes), *(0 for _ in variables)],
        )
        self.symbols = {
            v.name: self.map.address(len(self.bytes) + i) for i, v in enumerate(variables)
        }

        def number(argument: Argument) -> int | float:
            if isinstance(argument, np.ndarray | torch.Tensor):
                return self.map.address(index[id(argument)])
            return 0 if argument is None else argument

        self.parameters = {
            p.name: _structured(p, a, number)
            if isinstance(a, Struct)
            else _encoded(TYPES[p.kind], number(a))
            for p, a in zip(program.parameters, [*args, *[0] * len(missing)], strict=True)
        }

    def copy_in(self, memory: Space) -> None:
        for start, data in zip(self.map.begins, [*self.bytes, *self._constants], strict=False):
            memory.bytes[start : start + data.nbytes] = data

    def copy_out(self, memory: Space) -> None:
        for start, data in zip(self.map.begins, self.bytes, strict=False):
            if data.flags.writeable:
                data[:] = memory.bytes[start : start + data.nbytes]


def _bytes_of(array: np.ndarray | torch.Tensor) -> Array:
    if isinstance(array, torch.Tensor):
        order = sorted(range(array.dim()), key=array.stride, reverse=True)  # channels_last is dense
        dense = array.detach().permute(order)
        if not dense.is_contiguous():
            raise PtxError("a tensor must be dense")
        return np.asarray(dense.view(-1).view(torch.uint8).numpy())
    if not array.flags.c_contiguous:
        raise PtxError("an array must be contiguous")
    return array.reshape(-1).view(np.uint8)


def _flat(args: Sequence[Argument | Struct]) -> Iterator[Argument]:
    """Arguments, structs by their members: what Stats counts positions in."""
    for argument in args:
        if isinstance(argument, Struct):
            yield from argument.members
        else:
            yield argument


def _encoded(kind: Type, number: int | float) -> bytes:
    if kind.is_float:
        return struct.pack({4: "<f", 8: "<d"}[kind.size], float(number))
    return (int(number) % (1 << 8 * kind.size)).to_bytes(kind.size, "little")


def _structured(
    parameter: Parameter, value: Struct, number: Callable[[Argument], int | float]
) -> bytes:
    """Members at multiples of their sizes, the whole a multiple of the largest."""
    data, largest = b"", 1
    for name, member in zip(value.types.split(), value.members, strict=True):
        kind = TYPES[name]
        largest = max(largest, kind.size)
        data = data.ljust(-(-len(data) // kind.size) * kind.size, b"\0")
        data += _encoded(kind, number(member))
    data = data.ljust(-(-len(data) // largest) * largest, b"\0")
    if len(data) != parameter.count:
        raise PtxError(f"{parameter.name} has {parameter.count} bytes, the struct {len(data)}")
    return data


@dataclass
class _Layout:
    symbols: dict[str, int]
    shared: int
    local: int


def _layout(program: Program, dynamic: int) -> _Layout:
    """Shared and local variables at their offsets; what the launch sizes comes last."""
    ends = {"shared": 0, "local": 0}
    symbols = {}
    order = sorted(program.variables.values(), key=lambda v: v.size == 0)
    for variable in order:
        if variable.space in ends:
            start = -(-ends[variable.space] // variable.align) * variable.align
            symbols[variable.name] = start
            if variable.size or variable.space == "local":
                ends[variable.space] = start + variable.size
            else:
                ends["shared"] = start
    return _Layout(symbols, ends["shared"] + dynamic, -(-ends["local"] // 16) * 16)
