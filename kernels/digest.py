"""A digest of each sample: the sum mod 2^64 of a hash of (bits, index), splitmix64's finaliser.

4 B read an element in float32, 8 B written a sample. A sum of integers does not depend on its
order, so it has the bits of reference.digest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastadv.kernels import checks, tiles


@triton.jit
def digest_share(bits, index):
    """One element's share; uint64."""
    z = bits + (index + 1).to(tl.uint64) * tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    z = (z ^ (z >> 30)) * tl.full([], 0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full([], 0x94D049BB133111EB, tl.uint64)
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=("units",))
def digest_kernel(x, out, units: tl.int32, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """One program a sample of units * UNIT elements. x: their bits, as integers."""
    size = units * UNIT
    sample = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.uint64)
    width: tl.constexpr = x.dtype.element_ty.primitive_bitwidth
    for first in range(0, size, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        mask = lanes < size
        bits = tl.load(x + sample * size + lanes, mask=mask, other=0).to(tl.int64)
        if width < 64:
            bits = bits & ((1 << width) - 1)
        share = digest_share(bits.to(tl.uint64, bitcast=True), lanes.to(tl.int64))
        total += tl.where(mask, share.to(tl.int64, bitcast=True), 0).to(tl.uint64, bitcast=True)
    tl.store(out + sample, tl.sum(total.to(tl.int64, bitcast=True)))


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(x: Tensor) -> Tensor:
    """(N, *shape) to (N,) int64, in the order of memory."""
    layout = checks.layout_of(checks.floating(x, "x"), "x")
    if layout.total == 0:
        return x.new_zeros(layout.samples, dtype=torch.long)
    out = x.new_empty(layout.samples, dtype=torch.long)
    tile = tiles.digest(layout.size, x.element_size())
    unit = tiles.unit(layout.size)
    with checks.current_device(x):
        digest_kernel[(layout.samples,)](
            x.view(INTEGERS[x.element_size()]), out, layout.size // unit, UNIT=unit,
            BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
    return out
