"""The tiles of every kernel: static tables in place of @autotune, which needs a device.

A program of 4 warps with 8 float32 elements a thread has two 128-bit loads of each input in flight;
the number of elements follows from the bytes of one, so that it is the same in every dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """`block` elements a program, `warps` warps."""

    block: int
    warps: int


def options(warps: int) -> dict[str, int | bool]:
    """How every kernel here is compiled: a fused multiply-add would change bits."""
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False}


def elementwise(itemsize: int) -> Tile:
    """Of a pass over all elements: 32 B of each tensor a thread."""
    return Tile(4096 // itemsize, 4)


HELD = 4096  # elements of a sample that a program's registers hold
HELD_WIDE = 2048  # the same in float64's l1 step, which spills above: 128 registers a thread


def held(size: int, norm: str, itemsize: int) -> bool:
    """Whether the l2 or l1 step has a sample in registers."""
    return size <= (HELD_WIDE if norm == "l1" and itemsize == 8 else HELD)


def sample(size: int, itemsize: int) -> Tile:
    """Of one sample in a program's registers: 16 elements a thread, 8 in float64."""
    block = max(power_of_two(size), 32)
    each = 8 if itemsize == 8 else 16
    return Tile(block, min(max(block // (32 * each), 1), 16))


def power_of_two(n: int) -> int:
    """The least one that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


def unit(size: int) -> int:
    """The power of two, of 16 at most, that samples are a multiple of: each then starts at one, and
    accesses are that wide, of 128 bits at most, under a mask too."""
    return min(size & -size, 16)


FEW_SAMPLES = 64  # fewer programs than that, one a sample, leave most of a device without work
PARTS = 256  # programs a sample at most


@dataclass(frozen=True)
class Walk:
    """A pass over a long sample: `parts` programs of `share` tiles each."""

    tile: Tile
    parts: int
    share: int


def long_sample(samples: int, size: int, itemsize: int) -> Walk:
    """One program a sample, of as many threads as there are; several where samples are few."""
    half = 2 if itemsize == 8 else 1  # numbers of 8 B take twice the registers
    tile = Tile(4096 // half, 16) if samples >= FEW_SAMPLES else Tile(2048 // half, 8)
    count = -(-size // tile.block)
    if samples >= FEW_SAMPLES:
        return Walk(tile, 1, count)
    share = -(-count // PARTS)
    return Walk(tile, -(-count // share), share)


def long_search(itemsize: int) -> Tile:
    """Of the l1 step's walks over a long sample, one program each."""
    return Tile(2048 if itemsize == 8 else 4096, 16)


# Bits at the low end of a gradient's number, in its compute dtype, that are always zero, in pairs:
# the l1 step does not search them.
LOWEST = {torch.float64: 0, torch.float32: 0, torch.bfloat16: 16, torch.float16: 12}


def rank(top: float, size: int) -> int:
    """How many elements the share `top` of a sample is, as in reference.slide."""
    return min(max(math.floor(top * size + 0.5), 1), size)


def digest(size: int, itemsize: int) -> Tile:
    """Of a walk over one sample that keeps one int64 a lane."""
    block = min(max(power_of_two(size), 256), 8192 // itemsize)
    return Tile(block, max(block * itemsize // 1024, 1))


PROGRAMS = 512  # that keep a device busy


def batch(samples: int, size: int, itemsize: int) -> Walk:
    """Of the sum over a batch: `share` samples each of `parts` programs a block of columns."""
    tile = elementwise(itemsize)
    blocks = -(-size // tile.block)
    parts = max(min(PROGRAMS // blocks, 16, samples // 8), 1)
    share = max(-(-samples // parts), 1)
    return Walk(tile, max(-(-samples // share), 1), share)


HELD_CLASSES = 8192  # logits of a row that a program's registers hold; in float64 half of them


@dataclass(frozen=True)
class Rows:
    """`rows` rows a program, in tiles of `columns`: one, or, where rows are `long`, several."""

    rows: int
    columns: int
    warps: int
    long: bool


def head(classes: int, itemsize: int) -> Rows:
    """Of the heads: tiles of 1024 logits and 4 warps; a row's own where it is longer."""
    columns = max(power_of_two(classes), 4)
    if columns <= 1024:
        return Rows(1024 // columns if columns <= 256 else 1, columns, 4, False)
    if columns <= HELD_CLASSES // (2 if itemsize == 8 else 1):
        return Rows(1, columns, 8 if columns <= 4096 else 16, False)
    return Rows(1, 4096, 8, True)


def labels_head(classes: int, itemsize: int) -> Rows:
    """Of binary cross-entropy, which needs no row at once: it walks over it, 4 KiB a tile."""
    return head(min(classes, 4096 // max(itemsize, 4)), 4)
