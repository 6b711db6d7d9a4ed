"""Which kernels serve a convolution that learns: by the table of speeds (speeds.py).

Weights that learn change between two forwards, so they are packed in each, and that counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from fastadv.engine import speeds, worth
from fastadv.engine.choice import NEAR, why_not_direct, why_not_winograd
from fastadv.engine.reference_direct import Geometry
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, PLAIN, WINOGRAD, Case


class Kernels(NamedTuple):
    """What serves a convolution that learns, by the names of speeds.py."""

    forward: str
    gradient: str  # by its input
    weights: str  # its gradient by its weights


def sizes_of(size: Sequence[int], geometry: Geometry) -> list[int]:
    """The pixels of a convolution's output, down and across; 0 or less: torch says what is
    wrong."""
    return [
        (n + 2 * padding - dilation * (window - 1) - 1) // stride + 1
        for n, window, stride, padding, dilation in zip(size, *geometry, strict=True)
    ]


def kernels_of(x: Tensor, weight: Tensor, geometry: Geometry, batch: int) -> Kernels:
    outputs, inputs = weight.shape[:2]
    sizes = sizes_of(x.shape[2:], geometry)
    if min(sizes) <= 0:
        return Kernels(ATEN, ATEN, ATEN)
    return _choose(geometry, inputs, outputs, *sizes, batch, speeds.threads())


@lru_cache(maxsize=4096)
def _choose(
    geometry: Geometry, inputs: int, outputs: int, rows: int, columns: int, batch: int, threads: int
) -> Kernels:
    """The fastest kernels for outputs (batch, outputs, rows, columns); ATen's, where they would not
    gain what a call of ours costs, forward and back."""
    window, stride, _, _ = geometry
    sizes = math.sqrt(math.prod(window)), math.sqrt(math.prod(stride))
    case = Case("convolution", *sizes, inputs, outputs, rows, columns, batch)
    direct = why_not_direct(geometry) is None
    forward = [WINOGRAD] * (why_not_winograd(geometry, inputs) is None) + [DIRECT] * direct
    backward = [WINOGRAD] * (why_not_winograd(geometry, outputs) is None) + [FOLD] * direct
    weights = [WINOGRAD] * (stride == (1, 1) and why_not_winograd(geometry, inputs) is None)
    found = [
        _fastest(forward, case),
        _fastest(backward, case._replace(op="gradient")),
        _fastest(weights, case._replace(op="weight gradient"), packs=False),
    ]
    gained = sum(gain for _, gain in found)
    if not gained > worth.cost(0, 2):
        return Kernels(ATEN, ATEN, ATEN)
    return Kernels(*(kernel for kernel, _ in found))


def _fastest(able: Sequence[str], case: Case, packs: bool = True) -> tuple[str, float]:
    """The fastest of some kernels and ATen's, and the seconds that it gains over ATen's.

    Ours have their weights packed first. ATen's for contiguous images turns them there and back: it
    must be faster by NEAR.
    """
    table = speeds.current()
    packing = case._replace(op="packing", height=1, width=1, batch=1)

    def seconds(kernel: str) -> float:
        found = table.seconds(kernel, case, "float32") or math.inf
        if kernel in able and packs:
            return found + (table.seconds(kernel, packing, "float32") or math.inf)
        return found * NEAR if kernel == PLAIN else found

    found = min((ATEN, PLAIN, *able), key=seconds)
    return found, 0.0 if found == ATEN else seconds(ATEN) - seconds(found)
