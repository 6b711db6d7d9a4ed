"""Random numbers by philox: a function of (seed, sample, stream, element) and nothing else."""

from __future__ import annotations

import pytest
import torch
from cases import SHAPES
from conftest import threads
from tolerance import DTYPES

from fastadv import ops, reference


def test_philox_gives_the_published_words() -> None:
    """Random123's kat_vectors: philox4x32-10 of zeros, of ones, and of digits of pi."""
    zero, ones = torch.zeros(1, dtype=torch.long), torch.full((1,), 0xFFFFFFFF)
    words = reference._philox(zero, zero, zero, 0)
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = reference._philox(ones, ones, torch.full((1,), -1), -1)
    assert [int(w) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    block, stream = torch.tensor([0x243F6A88]), torch.tensor([0x85A308D3])
    sample = torch.tensor([0x03707344 << 32 | 0x13198A2E])
    words = reference._philox(block, stream, sample, 0x299F31D0 << 32 | 0xA4093822)
    assert [int(w) for w in words] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_uniform_is_its_reference_to_the_bit(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = torch.empty(shape, dtype=dtype)
        for seed, offset, stream in ((0, 0, 0), (2**63 - 1, 7, 3), (-5, 2**40, 2**31)):
            got = ops.uniform(x, seed, offset, stream)
            assert got.dtype == reference.compute_dtype(dtype)
            assert torch.equal(got, reference.uniform(x, seed, offset, stream))
            assert bool((got >= 0).all())
            assert bool((got < 1).all())


def test_uniform_does_not_depend_on_split_threads_or_format() -> None:
    x = torch.empty(8, 3, 40, 41)
    whole = ops.uniform(x, 11, 5)
    with threads(3):
        assert torch.equal(ops.uniform(x, 11, 5), whole)
    parts = [ops.uniform(x[:3], 11, 5), ops.uniform(x[3:], 11, 8)]
    assert torch.equal(torch.cat(parts), whole)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.uniform(last, 11, 5), whole)
    assert torch.equal(ops.uniform(x[0].expand_as(x), 11, 5), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_uniform_is_uniform_and_its_parts_are_unrelated(dtype: torch.dtype) -> None:
    x = torch.empty(20, 50000, dtype=dtype)
    u = ops.uniform(x, 1)
    n = u.numel()
    assert abs(float(u.mean()) - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    counts = torch.histc(u, 64, 0, 1)
    chi2 = float(((counts - n / 64) ** 2 / (n / 64)).sum())
    assert chi2 < 63 + 5 * (2 * 63) ** 0.5
    others = (ops.uniform(x, 2), ops.uniform(x, 1, 0, 1), ops.uniform(x, 1, 20), u.roll(1, 1))
    for other in others:  # another seed, stream, sample, and the neighbour
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1])) < (
            5 / n**0.5
        )


def test_empty() -> None:
    assert ops.uniform(torch.empty(0, 3), 1).shape == (0, 3)
    assert ops.uniform(torch.empty(3, 0), 1).shape == (3, 0)
