"""Triton's steps, compiled to PTX and run in the emulator through their launchers.

Tensors end where their arrays end, at odd sizes: an access beyond is out of bounds.
"""

from __future__ import annotations

import pytest
import torch
from cases import Case, make
from tolerance import assert_in_ball, assert_in_box, assert_near, bits

from fastadv import reference

pytest.importorskip("triton")
from fastadv.kernels import step, tiles
from tests.emulator.device import Device, emulated

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MORE = {"linf": (), "l2": (), "l1": (0.2,)}
LONG = 2 * tiles.HELD + 5


def run_step(
    norm: str, case: Case, arch: int = 80, steepest: bool = True
) -> tuple[torch.Tensor, Device]:
    args = case.args()
    with emulated(arch) as device:
        getattr(step, f"step_{norm}_")(*args, steepest, *MORE[norm])
    return args[0], device


def expected(norm: str, case: Case, steepest: bool = True) -> torch.Tensor:
    args = case.args()
    getattr(reference, f"step_{norm}_")(*args, steepest, *MORE[norm])
    return args[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "bounds", "last"), [
    ((5, 3, 17, 19), "each", False), ((5, 3, 17, 19), "each", True), ((7, 641), "one", False),
    ((1, 1), "none", False),
])  # fmt: skip
def test_linf_has_the_references_bits(dtype, shape, bounds, last):
    case = make(shape, dtype, bounds, last=last)
    first, end = ((i,) * case.x.dim() for i in (0, -1))
    case.grad[end], case.grad[first] = -0.0, torch.nan
    result, _ = run_step("linf", case)
    assert torch.equal(bits(result), bits(expected("linf", case)))
    assert_in_box(result, *case.box())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linf_has_the_references_bits_on_sm_90(dtype):
    case = make((3, 1000), dtype, "one", per_sample=False)
    result, _ = run_step("linf", case, arch=90, steepest=False)
    assert torch.equal(bits(result), bits(expected("linf", case, steepest=False)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linf_moves_each_byte_once_in_128_bits(dtype):
    size = dtype.itemsize
    case = make((4, 4096 // size * 2), dtype, "one", per_sample=False)
    args = case.args()
    with emulated() as device:
        step.step_linf_(*args, True)
    total = case.x.numel() * size
    assert device.moved(args[0]) == (total, total, 0)
    assert device.moved(case.grad) == device.moved(case.x) == (total, 0, 0)
    assert len(device.launches) == 1


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 1, 48, 16), (2, 3)])
def test_held_samples(norm, dtype, shape):
    case = make(shape, dtype, "one", radius=0.9 if norm == "l2" else 3.0)
    assert_step(norm, case, *run_step(norm, case))


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(2, LONG), (tiles.FEW_SAMPLES, LONG)])
def test_long_samples(norm, shape):
    case = make(shape, torch.float32, "one", radius=2.0 if norm == "l2" else 30.0)
    assert_step(norm, case, *run_step(norm, case))


def assert_step(norm: str, case: Case, result: torch.Tensor, device: Device) -> None:
    """In the ball and the box exactly, near the reference, and each gradient read."""
    size = case.x[0].numel()
    wide = case.double()
    assert_near(result, expected(norm, wide), size)
    assert_in_ball(result[:3], case.x[:3], case.radius[:3], norm)
    assert_in_box(result, *case.box())
    assert len(device.launches) <= 2


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_samples_move_each_byte_once_in_128_bits(norm, dtype):
    case = make((2, 784), dtype, "one", radius=0.9, per_sample=False)
    args = case.args()
    with emulated() as device:
        getattr(step, f"step_{norm}_")(*args, True, *MORE[norm])
    total = case.x.numel() * dtype.itemsize
    assert device.moved(args[0]) == (total, total, 0)
    assert device.moved(case.grad) == device.moved(case.x) == (total, 0, 0)


@pytest.mark.parametrize("samples", [1, tiles.FEW_SAMPLES])
def test_long_l2_samples_move_28_bytes_an_element(samples):
    case = make((samples, 2 * tiles.HELD), torch.float32, "one", per_sample=False)
    args = case.args()
    with emulated() as device:
        step.step_l2_(*args, True)
    moved = [device.moved(t) for t in (args[0], case.grad, case.x)]
    assert sum(m.loaded + m.stored for m in moved) == 28 * case.x.numel()
    assert sum(m.narrow for m in moved) == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_zero_gradient_moves_nothing(norm):
    case = make((2, 96), torch.float32, "one", radius=50.0)
    case.x_adv = case.x.clone()
    case.grad.zero_()
    result, _ = run_step(norm, case)
    assert torch.equal(bits(result), bits(case.x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-36, 1e32, -1.0])
def test_few_long_samples_where_the_moments_do_not_tell(dtype, scale):
    """Gradients whose squares leave the numbers, and a step that cancels (-1): programs that share
    a sample must not read again what others write."""
    case = make((2, LONG), dtype, "one", radius=2.0)
    if scale == -1.0:
        case.grad = case.x - case.x_adv
        case.step_size = case.grad.double().norm(dim=1).to(dtype)
    else:
        case.grad *= scale if dtype == torch.float32 else scale**5
    result, device = run_step("l2", case)
    assert device.launches[-1].grid[1] > 1
    assert_near(result, expected("l2", case.double()), LONG, scale=1.0)
    assert_in_ball(result, case.x, case.radius, "l2")
