"""Triton's heads, compiled to PTX and run in the emulator through their launcher."""

from __future__ import annotations

import pytest
import torch
from head_cases import FORMS, Case, make

from fastadv.reference import compute_dtype
from fastadv.reference_head import CROSS_ENTROPY, KL

pytest.importorskip("triton")
from fastadv.kernels import head
from tests.emulator.device import Device, emulated


def run_head(case: Case, arch: int = 80) -> tuple[tuple[torch.Tensor, ...], Device]:
    with emulated(arch) as device:
        result = head.head(case.logits, case.y, case.target, case.head, case.targeted)
    return result, device


def assert_close(case: Case, result: tuple[torch.Tensor, ...]) -> None:
    """Within the roundings of sums over the classes, and of exponentials of units in the last
    place (the emulator's err by as much as PTX's manual allows)."""
    loss, grad, prediction = result
    expected_loss, expected_grad, expected_prediction = case.expected()
    z = case.logits.double()
    assert loss.dtype == compute_dtype(case.logits.dtype)
    assert torch.equal(prediction, expected_prediction)
    roundings = torch.finfo(loss.dtype).eps * (32 + z.shape[1] / 4)
    size = 1 + z.abs().amax(1)
    assert bool(((loss.double() - expected_loss).abs() <= 4 * roundings * size).all())
    allowed = (4 * roundings * size)[:, None] * (1 + expected_grad.abs())
    allowed = allowed + torch.finfo(grad.dtype).eps * expected_grad.abs()
    assert bool(((grad.double() - expected_grad).abs() <= allowed).all())


def assert_reads(device: Device, case: Case, times: int) -> None:
    """All logits so many times in 128 bits, and besides them the labels' own, by each warp."""
    moved = device.moved(case.logits)
    assert moved.loaded - moved.narrow == times * case.logits.numel() * 4
    assert moved.narrow <= 256 * len(case.logits)


@pytest.mark.parametrize(("number", "targeted"), FORMS)
@pytest.mark.parametrize(("dtype", "samples", "classes"), [
    (torch.float32, 9, 10), (torch.bfloat16, 5, 33), (torch.float32, 3, 1000),
])  # fmt: skip
def test_heads(number, targeted, dtype, samples, classes):
    case = make(number, targeted, dtype, samples, classes, ties=classes == 33)
    result, device = run_head(case)
    assert_close(case, result)
    assert len(device.launches) == 1


@pytest.mark.parametrize("number", [CROSS_ENTROPY, KL])
@pytest.mark.parametrize("arch", [80, 90])
def test_many_classes(number, arch):
    case = make(number, False, torch.float32, 2, 9001)
    result, _ = run_head(case, arch)
    assert_close(case, result)


@pytest.mark.parametrize(("number", "targeted"), FORMS)
def test_logits_are_read_once_and_the_gradient_written_once(number, targeted):
    case = make(number, targeted, torch.float32, 8, 1000)
    (_, grad, _), device = run_head(case)
    assert_reads(device, case, times=1)
    assert device.moved(grad)[:2] == (0, grad.numel() * 4)


def test_32k_classes_are_read_twice_in_128_bits():
    case = make(CROSS_ENTROPY, False, torch.float32, 2, 32768)
    (_, grad, _), device = run_head(case)
    assert_reads(device, case, times=2)
    assert device.moved(grad) == (0, grad.numel() * 4, 0)
