"""The tiles of every kernel: static tables in place of @autotune, which needs a device.

A program of 4 warps with 8 float32 elements a thread has two 128-bit loads of each input in flight;
the number of elements follows from the bytes of one, so that it is the same in every dtype.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """`block` elements a program, `warps` warps."""

    block: int
    warps: int


def elementwise(itemsize: int) -> Tile:
    """Of a pass over all elements: 32 B of each tensor a thread."""
    return Tile(4096 // itemsize, 4)
