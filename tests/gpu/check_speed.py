"""Short timings beside a triad's bandwidth: medians of 20 calls, by the device's own clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from gpu_plugin import DEVICE
from torch import nn

import fastadv as fa

Record = Callable[[str, object], None]
CUDA = DEVICE.type == "cuda"
SHAPE = (64, 3, 224, 224) if CUDA else (4, 3, 16, 16)
ROUNDS = 20 if CUDA else 2


def seconds(run: Callable[[], object]) -> float:
    """The median of a call."""
    for _ in range(3):
        run()
    times = []
    for _ in range(ROUNDS):
        if CUDA:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            before = time.perf_counter()
            run()
            times.append(time.perf_counter() - before)
    return statistics.median(times)


def triad() -> float:
    """Bytes a second of a = b + 2 c in float32."""
    a, b, c = (torch.rand(SHAPE, device=DEVICE) for _ in range(3))
    return 3 * 4 * a.numel() / seconds(lambda: torch.add(b, c, alpha=2, out=a))


def record(record_property: Record, name: str, moved: int, time: float) -> None:
    bandwidth = moved / time
    record_property("what", name)
    record_property("us", round(time * 1e6, 2))
    record_property("GB/s", round(bandwidth / 1e9, 1))
    record_property("share of a triad's", round(bandwidth / triad(), 3))
    assert time > 0


# Bytes an element that each kernel has to move: x_adv, grad and x read, x_adv written; l2 and l1
# over long samples read them a second time.
@pytest.mark.parametrize(("norm", "bytes_each"), [("linf", 16), ("l2", 28), ("l1", 28)])
def test_a_step(norm: str, bytes_each: int, record_property: Record) -> None:
    ball = {"linf": fa.Linf(8 / 255), "l2": fa.L2(3.0), "l1": fa.L1(50.0)}[norm]
    x = torch.rand(SHAPE, device=DEVICE)
    x_adv, grad = x.clone(), torch.randn_like(x)
    run = seconds(lambda: fa.ops.step_(x_adv, grad, x, ball=ball, step_size=0.01))
    record(record_property, f"step {norm}, {SHAPE}", bytes_each * x.numel(), run)


def test_a_universal_step(record_property: Record) -> None:
    grads = torch.randn(SHAPE, device=DEVICE)
    delta, ball = torch.zeros(SHAPE[1:], device=DEVICE), fa.Linf(8 / 255)
    run = seconds(lambda: fa.ops.universal_(delta, grads, ball=ball, step_size=0.01))
    record(record_property, f"universal linf, {SHAPE}", 4 * grads.numel(), run)


def test_a_head(record_property: Record) -> None:
    logits = torch.randn(512, 1000, device=DEVICE)
    y = torch.randint(0, 1000, (512,), device=DEVICE)
    run = seconds(lambda: fa.ops.head(logits, y, None, 0, False))
    record(record_property, "cross-entropy head, 512x1000", 8 * logits.numel(), run)


def net() -> nn.Module:
    """A few stages of 3x3 convolutions, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in ((3, 64), (64, 64), (64, 128), (128, 256)):
        stride = 2 if before < after > 64 else 1
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


@pytest.mark.parametrize("how", ["eager", "compiled", "captured", "captured, bfloat16"])
def test_an_attack(how: str, record_property: Record) -> None:
    torch.manual_seed(0)
    model = net().to(DEVICE).eval()
    batch, steps = (128, 10) if CUDA else (4, 2)
    x = torch.rand(batch, 3, 32, 32, device=DEVICE)
    y = torch.randint(0, 10, (batch,), device=DEVICE)
    if how != "eager":
        precision = "bfloat16" if "bfloat16" in how else "float32"
        model = fa.compile(model, precision, graph="captured" in how)
    attack = fa.pgd(fa.Linf(8 / 255), 2 / 255, steps)
    run = seconds(lambda: attack(model, x, y))
    record_property("what", f"PGD-{steps}, a net of 4 convolutions, {batch}x3x32x32, {how}")
    record_property("ms a step", round(run * 1e3 / steps, 4))
    assert run > 0
