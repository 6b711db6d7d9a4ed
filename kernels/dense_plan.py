"""How a stack of linear layers is laid out for dense.py, and in which tiles it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple


class Stack(NamedTuple):
    """A stack's layers in one buffer of weights and one of biases, padded with zeros.

    Layer l has a matrix (rows[l], widths[l]) at offsets[l]. The width, a power of two, is the side
    that stays in registers: the outputs of layers 0, 2, ..., the inputs of layers 1, 3, ...; the
    rows are walked through. Outputs stand at places[l] among the biases and the kept of a sample.
    """

    inputs: int
    classes: int
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    offsets: tuple[int, ...]
    places: tuple[int, ...]
    outputs: int
    leaks: tuple[float, ...]  # 0: ReLU, 1: no activation


@dataclass(frozen=True)
class Tile:
    """`rows` samples a program, which takes `piece` inputs and `chunk` outputs at once. shared:
    bytes of shared memory that are enough for any stack."""

    rows: int
    piece: int
    chunk: int
    warps: int
    shared: int = 96 << 10
    stages: int = 2


WIDEST = 512  # outputs of a layer in registers: 64 a thread, beside as many of the products
CLASSES = 128
LAST_MATRIX = 64 << 10  # bytes: of an even number of layers the last one's is taken at once

# By bytes of a product's number and the widest layer in registers: from many samples to few. What
# is larger spills; tests/test_dense_compiled.py compiles them all.
TILES = {
    (2, 256): (Tile(64, 32, 32, 8), Tile(32, 64, 64, 8), Tile(16, 32, 32, 4)),
    (2, 512): (Tile(32, 32, 32, 8, 101 << 10), Tile(16, 32, 32, 8)),
    (4, 256): (Tile(32, 32, 32, 8, 105 << 10), Tile(16, 32, 32, 8)),
    (4, 512): (Tile(32, 16, 16, 8, 133 << 10), Tile(16, 16, 16, 8, 99 << 10)),
}


@dataclass(frozen=True)
class Device:
    """What the choice of a tile depends on."""

    processors: int
    shared: int  # bytes that a program can have
    capability: int  # 80, 90, 100, ...


def why_not(sizes: tuple[int, ...], itemsize: int) -> str | None:
    """Why a stack does not fit into a program, or None. sizes: inputs, each layer's outputs."""
    if sizes[-1] > CLASSES:
        return f"it has {sizes[-1]} classes, more than {CLASSES}"
    if (widest := max(sizes[1::2])) > WIDEST:
        return f"a layer of {widest} outputs is wider than {WIDEST}"
    last = _power(sizes[-1]) * _power(sizes[-2]) * itemsize
    if len(sizes) % 2 == 1 and last > LAST_MATRIX:
        return f"its last layer's matrix takes {last} bytes, more than {LAST_MATRIX}"
    return None


def tile_for(sizes: tuple[int, ...], itemsize: int, samples: int, device: Device) -> Tile:
    """The largest that keeps all processors busy: a program reads all weights once a step."""
    tiles = TILES[itemsize, 256 if max(sizes[1::2]) <= 256 else 512]
    fitting = [tile for tile in tiles if tile.shared <= device.shared]
    found = [t for t in fitting if t.rows < 64 or _takes_64(sizes, device)] or [tiles[-1]]
    return next((t for t in found if samples >= t.rows * device.processors), found[-1])


def _takes_64(sizes: tuple[int, ...], device: Device) -> bool:
    """64 samples a program are what Hopper's wgmma needs. Blackwell's tcgen05 spills (95 accesses),
    and so do odd inputs (15) and a last layer that is taken at once (62)."""
    plain = len(sizes) % 2 == 0 and sizes[-1] <= 16 and sizes[0] % 16 == 0
    return plain and device.capability // 10 == 9


def _power(size: int) -> int:
    """The next power of two, at least 16: a tensor core's least."""
    return max(16, 1 << (size - 1).bit_length())


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def lay_out(sizes: tuple[int, ...], leaks: tuple[float, ...], tile: Tile) -> Stack:
    """sizes: inputs, each layer's outputs. The last layer's outputs are all taken at once."""
    rows, widths, outputs = [], [], []
    last = len(sizes) - 2
    for layer, (ins, outs) in enumerate(pairwise(sizes)):
        if layer % 2 == 0:
            rows.append(_multiple(ins, tile.piece if layer == 0 else tile.chunk))
            widths.append(_power(outs))
            outputs.append(widths[-1])
        else:
            rows.append(_power(outs) if layer == last else _multiple(outs, tile.chunk))
            widths.append(_power(ins))
            outputs.append(rows[-1])
    elements = [r * w for r, w in zip(rows, widths, strict=True)]
    return Stack(
        sizes[0],
        sizes[-1],
        tuple(rows),
        tuple(widths),
        tuple(accumulate(elements, initial=0))[:-1],
        tuple(accumulate(outputs, initial=0))[:-1],
        sum(outputs),
        leaks,
    )
