"""The digest of x_adv: what stop="cycle" compares."""

from __future__ import annotations

import pytest
import torch
from cases import FORMATS, SHAPES
from conftest import threads
from tolerance import DTYPES

from fastadv import ops, reference

MASK = 2**64 - 1


def by_hand(words: list[int]) -> int:
    """The sum of splitmix64's finaliser over (bits, index), mod 2^64, in Python's integers."""
    total = 0
    for i, word in enumerate(words):
        z = (word + (i + 1) * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        total = (total + (z ^ (z >> 31))) & MASK
    return total - 2**64 if total >> 63 else total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_is_its_reference_and_its_formula(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        for last in (False, True) if x.dim() in FORMATS else (False,):
            point = x.contiguous(memory_format=FORMATS[x.dim()]) if last else x
            got = ops.digest(point)
            assert torch.equal(got, reference.digest(point))
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    x = torch.tensor([[1.5, -2.0, 0.0, -0.0, torch.inf, torch.nan]], dtype=dtype)
    width = x.element_size()
    words = [w & ((1 << 8 * width) - 1) for w in x.view(kinds[width])[0].tolist()]
    assert ops.digest(x).tolist() == [by_hand(words)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_tells_points_apart(dtype: torch.dtype) -> None:
    """One bit, one swap, the sign of one zero: each gives another digest."""
    x = torch.rand(40, generator=torch.Generator().manual_seed(2)).to(dtype)
    points = [x, torch.zeros_like(x), -torch.zeros_like(x)]
    for i in range(40):
        nudged = x.clone()
        nudged[i] = torch.nextafter(nudged[i], torch.ones((), dtype=dtype) * 2)
        points.append(nudged)
    swapped = x.clone()
    swapped[[0, 1]] = x[[1, 0]]
    found = ops.digest(torch.stack([*points, swapped]))
    assert len(set(found.tolist())) == len(points) + 1
    assert torch.equal(ops.digest(torch.stack([*points, swapped])), found)


def test_digest_does_not_depend_on_batch_or_threads() -> None:
    x = torch.rand(9, 3, 71, 70, generator=torch.Generator().manual_seed(3))
    whole = ops.digest(x)
    with threads(3):
        assert torch.equal(ops.digest(x), whole)
    assert torch.equal(torch.cat([ops.digest(x[:2]), ops.digest(x[2:])]), whole)
    strange = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(ops.digest(strange), whole)


def test_empty() -> None:
    assert ops.digest(torch.empty(0, 3)).shape == (0,)
    assert ops.digest(torch.empty(3, 0)).tolist() == [0, 0, 0]
