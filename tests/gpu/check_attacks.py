"""Whole attacks on the device: feasible exactly, as strong as on the CPU, and without a wait."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import seeded
from gpu_plugin import DEVICE, on_cuda
from stand_in import small_net
from tolerance import assert_in_box
from torch import Tensor, nn

import fastadv as fa

X, Y = torch.rand(64, 3, 8, 8, generator=seeded(0)), torch.arange(64) % 5
ATTACKS = {
    "linf": fa.pgd(fa.Linf(0.05), steps=10),
    "l2": fa.pgd(fa.L2(0.5), steps=10),
    "l1": fa.pgd(fa.L1(6.0), steps=10),
    "momentum": fa.mi_fgsm(fa.Linf(0.05), steps=10),
    "adam": fa.Attack(fa.Linf(0.05), fa.Adam(0.01), 10),
    "apgd": fa.apgd(fa.Linf(0.05), steps=10),
    "restarts": fa.pgd(fa.Linf(0.05), steps=5, restarts=3),
    "dlr": fa.pgd(fa.Linf(0.05), steps=10, objective=fa.dlr),
    "fooled": fa.pgd(fa.Linf(0.05), steps=20, stop="fooled"),
    "cycle": fa.pgd(fa.Linf(0.05), steps=60, stop="cycle"),
}


def both(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    model = small_net().to(dtype)
    return model, copy.deepcopy(model).to(DEVICE)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_as_strong_as_on_the_cpu(name: str) -> None:
    attack = ATTACKS[name]
    here, there = both()
    expected = attack.run(here, X, Y, generator=seeded(1))
    got = attack.run(there, X.to(DEVICE), Y.to(DEVICE), generator=seeded(1))
    assert abs(float(got.loss.mean().cpu() - expected.loss.mean())) < 0.02
    assert abs(int(got.success.sum()) - int(expected.success.sum())) <= 2
    delta = got.x_adv.cpu().double() - X.double()
    assert bool((attack.ball.norm(delta) <= attack.ball.radius).all())
    assert_in_box(got.x_adv.cpu(), 0.0, 1.0)
    verdict = fa.verify(here, X, got.x_adv.cpu(), Y, attack.ball)
    assert bool(verdict.feasible.all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_in_float64_an_attack_is_the_cpus(norm: str) -> None:
    """No sign turns: the same points, up to roundings."""
    ball = {"linf": fa.Linf(0.05), "l2": fa.L2(0.5), "l1": fa.L1(6.0)}[norm]
    attack = fa.pgd(ball, steps=5)
    here, there = both(torch.float64)
    x = X.double()
    expected = attack.run(here, x, Y, generator=seeded(1))
    got = attack.run(there, x.to(DEVICE), Y.to(DEVICE), generator=seeded(1))
    torch.testing.assert_close(got.loss.cpu(), expected.loss, rtol=1e-6, atol=1e-6)


def test_a_random_start_is_the_cpus_and_no_batch_split_matters() -> None:
    x = X.to(DEVICE)
    start = fa.Linf(0.05).sample(x, 7)
    assert torch.equal(start.cpu(), fa.Linf(0.05).sample(X, 7))
    parts = [fa.Linf(0.05).sample(x[i : i + 16], 7, offset=i) for i in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), start)


class Watched(nn.Module):
    """torch raises at a call that waits for the device, from forward `first` to forward `last`."""

    def __init__(self, model: nn.Module, first: int = 0, last: int = 0) -> None:
        super().__init__()
        self.model, self.first, self.last, self.count = model, first, last, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.count == self.first:
            torch.cuda.set_sync_debug_mode("error")
        if self.count == self.last:
            torch.cuda.set_sync_debug_mode("default")
        return self.model(x)


@on_cuda
@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("fooled", "cycle")])
def test_no_step_waits_for_the_device(name: str) -> None:
    _, there = both()
    x, y = X.to(DEVICE), Y.to(DEVICE)
    ATTACKS[name](counted := Watched(there), x, y)  # what is made once is made here
    try:
        ATTACKS[name](Watched(there, 2, counted.count), x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_cuda
def test_attacks_run_on_any_stream() -> None:
    _, there = both()
    attack, x, y = ATTACKS["linf"], X.to(DEVICE), Y.to(DEVICE)
    expected = attack(there, x, y, generator=seeded(1))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = attack(there, x, y, generator=seeded(1))
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got, expected)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("name", FORMATS)
def test_memory_formats(name: str) -> None:
    _, there = both()
    x = FORMATS[name](X.to(DEVICE))
    got = fa.fgsm(fa.Linf(0.05))(there, x, Y.to(DEVICE))
    plain = fa.fgsm(fa.Linf(0.05))(there, x.contiguous(), Y.to(DEVICE))
    assert float((got - plain).abs().max()) <= 0.11  # a gradient near 0 may turn
    assert float(((got - plain).abs() > 1e-6).double().mean()) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    _, there = both()
    x = X.to(DEVICE, dtype)
    got = ATTACKS["linf"](lambda v: there(v.float()), x, Y.to(DEVICE))
    assert got.dtype == dtype
    assert float((got.double() - x.double()).abs().max()) <= 0.05
