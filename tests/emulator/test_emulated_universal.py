"""Triton's universal steps, digest and uniform, compiled to PTX and run in the emulator."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_near, bits

from fastadv import reference

pytest.importorskip("triton")
from fastadv.kernels import digest, tiles, uniform, universal
from tests.emulator.device import emulated

STEPS = {"linf": (reference.step_linf_, ()), "l2": (reference.step_l2_, ()),
         "l1": (reference.step_l1_, (0.2,))}  # fmt: skip


def arguments(shape: tuple[int, ...], dtype: torch.dtype, momentum: bool, weighted: bool) -> tuple:
    g = torch.Generator().manual_seed(1)
    wide = reference.compute_dtype(dtype)
    grads = torch.randn(shape, generator=g).to(dtype)
    delta = (0.05 * torch.randn(shape[1:], generator=g)).to(dtype)
    velocity = torch.randn(shape[1:], generator=g).to(wide) / grads[0].numel() if momentum else None
    weights = torch.rand(shape[0], generator=g).to(wide) if weighted else None
    if weights is not None:
        weights[1], grads[1] = 0, torch.nan  # a sample of weight 0 is left out
    step, radius = torch.tensor(0.01, dtype=wide), torch.tensor(0.4, dtype=wide)
    return delta, velocity, grads, weights, step, radius, 0.9 if momentum else 0.0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("dtype", "shape", "momentum", "weighted"), [
    (torch.float32, (9, 3, 7, 11), False, True), (torch.bfloat16, (5, 1, 16, 48), True, False),
    (torch.float32, (3, 2 * tiles.HELD + 5), True, True),
])  # fmt: skip
def test_universal_steps(norm, dtype, shape, momentum, weighted):
    step, more = STEPS[norm]
    signs = not weighted and norm == "linf"
    delta, velocity, *rest = arguments(shape, dtype, momentum, weighted)
    wanted = [t if t is None else t.double() for t in (delta, velocity)]
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in rest]
    reference.universal_(step, *wanted, *wide, signs, True, *more)
    with emulated() as device:
        getattr(universal, f"universal_{norm}_")(delta, velocity, *rest, signs, True, *more)
    size = delta.numel()
    assert_near(delta, wanted[0], size * shape[0], scale=1.0)
    if velocity is not None:
        assert_near(velocity, wanted[1], size * shape[0])
    moved = device.moved(rest[0])
    assert moved.loaded == rest[0].numel() * dtype.itemsize
    assert moved.stored == 0


@pytest.mark.parametrize("samples", [64, 300])
def test_a_batch_is_read_once_in_128_bits(samples):
    delta, _, *rest = arguments((samples, 1024), torch.float32, False, False)
    with emulated() as device:
        universal.universal_linf_(delta, None, *rest, False, True)
    assert device.moved(rest[0]) == (samples * 4096, 0, 0)
    total = sum(
        sum(x.stats.loaded.values()) + sum(x.stats.stored.values()) for x in device.launches
    )
    parts = device.launches[0].grid[1]
    assert total - samples * 4096 <= (16 * parts + 32) * 1024  # sums, once written and once read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 48, 256), (2, 1)])
def test_digest_has_the_references_bits(dtype, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    x.view(-1)[0] = -0.0
    with emulated() as device:
        result = digest.digest(x)
    assert torch.equal(result, reference.digest(x))
    assert device.launches[0].stats.loaded[0] == x.numel() * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 3072), (1, 1)])
@pytest.mark.parametrize("arch", [80, 90])
def test_uniform_has_the_references_bits(dtype, shape, arch):
    x, seed, offset, stream = torch.zeros(shape).to(dtype), 2**63 + 12345, 2**33 + 7, 3
    with emulated(arch) as device:
        result = uniform.uniform(x, seed, offset, stream)
    assert torch.equal(bits(result), bits(reference.uniform(x, seed, offset, stream)))
    written = x.numel() * result.element_size()
    assert device.moved(result) == (0, written, device.moved(result).narrow)
    if shape == (2, 3072):
        assert device.moved(result).narrow == 0
