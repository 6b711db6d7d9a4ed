"""The interpreter's bfloat16, once corrected, is torch's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


@triton.jit
def add(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def dot(a, b, c, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def test_casts_round_to_nearest_even() -> None:
    """Every bfloat16, the numbers half way to the next, and their neighbours."""
    upper = torch.arange(2**16, dtype=torch.int32) << 16
    for low in (0, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | low).view(torch.float32)
        out = torch.empty(2**16, dtype=torch.bfloat16)
        cast[(1,)](x, out, BLOCK=2**16)
        expected = x.bfloat16()
        same = out.view(torch.int16) == expected.view(torch.int16)
        assert bool((same | (out.isnan() & expected.isnan())).all())
        back = torch.empty(2**16)
        cast[(1,)](expected, back, BLOCK=2**16)
        assert torch.equal(back.nan_to_num(7), expected.float().nan_to_num(7))


def test_sums_and_products() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, generator=g).bfloat16() for _ in range(2))
    out = torch.empty_like(x)
    add[(1,)](x, y, out, BLOCK=256)
    assert torch.equal(out, x + y)
    a, b = (torch.randn(16, 16, generator=g).bfloat16() for _ in range(2))
    c = torch.empty(16, 16)
    dot[(1,)](a, b, c, SIZE=16)
    torch.testing.assert_close(c, a.float() @ b.float())
