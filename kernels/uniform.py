"""U[0, 1) by Philox4x32-10 (Salmon et al. 2011): word element % 4 of block element // 4, under
(seed, offset + sample, stream); float64 takes two words an element.

4 B written an element in float32, nothing read. The numbers are those of reference.uniform to the
bit, whatever the batch split. Seed and offset are integers, or come from a tensor, which a CUDA
graph's replays can advance.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastadv.kernels import checks, tiles
from fastadv.reference import compute_dtype


@triton.jit
def _philox(block, stream, sample, seed):
    """Four words, uint32, for each of `block`."""
    c0 = block.to(tl.uint32)
    c1 = tl.zeros_like(c0) + stream.to(tl.uint32)
    c2 = tl.zeros_like(c0) + sample.to(tl.uint32)
    c3 = tl.zeros_like(c0) + (sample >> 32).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c0.shape, 0xCD9E8D57, tl.uint32))
        low0 = c0 * tl.full(c0.shape, 0xD2511F53, tl.uint32)
        low1 = c2 * tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + tl.full([], 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full([], 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _unit(low, high):
    """53 bits of two words, as a number in [0, 1)."""
    word = (high.to(tl.int64) << 21) | (low >> 11).to(tl.int64)
    return word.to(tl.float64) * 2.0**-53


@triton.jit(do_not_specialize=("seed", "offset", "stream", "units"))
def uniform_kernel(
    out, state, seed: tl.int64, offset: tl.int64, stream: tl.int64, units: tl.int32,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out: (N, units * UNIT). state: None, or (seed, offset) in place of the integers."""
    if state is not None:
        seed = tl.load(state)
        offset = tl.load(state + 1)
    size = units * UNIT
    parts = tl.cdiv(size, BLOCK)
    sample = (tl.program_id(0) // parts).to(tl.int64)
    first = tl.program_id(0) % parts * BLOCK
    WIDE: tl.constexpr = out.dtype.element_ty == tl.float64
    EACH: tl.constexpr = 2 if WIDE else 4
    block = first // EACH + tl.arange(0, BLOCK // EACH)
    w0, w1, w2, w3 = _philox(block, stream, offset + sample, seed)
    if WIDE:
        values = tl.join(_unit(w0, w1), _unit(w2, w3)).reshape(BLOCK)
    else:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK)
        values = (words >> 8).to(tl.float32) * 2.0**-24
    lanes = first + tl.arange(0, BLOCK)
    tl.store(out + sample * size + lanes, values, mask=lanes < size)


def uniform(x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
    """U[0, 1) shaped like x (N, *shape), contiguous, in x's compute dtype."""
    return _uniform(x, None, seed, offset, stream)


def uniform_from(x: Tensor, state: Tensor, stream: int) -> Tensor:
    """The same with (seed, offset) read from `state`, (2,) int64 on x's device."""
    if state.shape != (2,) or not state.is_contiguous():
        raise ValueError(f"`state` must be (2,), seed and offset, got {checks.shape(state)}")
    checks.check_kind(state, "state", torch.int64, x)
    return _uniform(x, state, 0, 0, stream)


def _uniform(x: Tensor, state: Tensor | None, seed: int, offset: int, stream: int) -> Tensor:
    checks.floating(x, "x")
    if x.dim() == 0:
        raise ValueError("`x` must have a batch dimension, got a scalar")
    out = x.new_empty(x.shape, dtype=compute_dtype(x.dtype))
    size = x.shape[1:].numel()
    if size > checks.MOST:
        raise ValueError(f"`x` must have at most {checks.MOST} elements a sample, got {size}")
    if out.numel() == 0:
        return out
    tile = tiles.elementwise(out.element_size())
    unit = tiles.unit(size)
    with checks.current_device(x):
        uniform_kernel[(len(x) * triton.cdiv(size, tile.block),)](
            out, state, _signed(seed), offset, stream & 0xFFFFFFFF, size // unit, UNIT=unit,
            BLOCK=tile.block, **tiles.options(tile.warps),
        )  # fmt: skip
    return out


def _signed(seed: int) -> int:
    """The seed's 64 bits as an int64."""
    return (seed + 2**63) % 2**64 - 2**63
