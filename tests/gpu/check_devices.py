"""Several devices: the kernels run where their tensors are, whatever device is current."""

from __future__ import annotations

import pytest
import torch
from conftest import seeded
from stand_in import small_net

import fastadv as fa

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one device")


@pytest.mark.parametrize("compiled", [False, True])
def test_an_attack_on_the_second_device(compiled: bool) -> None:
    x, y = torch.rand(16, 3, 8, 8, generator=seeded(0)), torch.arange(16) % 5
    results = []
    for name in ("cuda:0", "cuda:1"):
        model = small_net().to(name)
        model = fa.compile(model, graph=True) if compiled else model
        attack = fa.pgd(fa.L2(0.5), steps=5)
        results.append(attack(model, x.to(name), y.to(name), generator=seeded(1)))
        assert results[-1].device == torch.device(name)
        assert torch.cuda.current_device() == 0
    torch.testing.assert_close(results[0].cpu(), results[1].cpu(), rtol=1e-4, atol=1e-4)


def test_a_radius_on_another_device_is_brought_over() -> None:
    x = torch.rand(4, 7, device="cuda:1")
    got = fa.ops.step_(x.clone(), x, x, ball=fa.Linf(0.1), step_size=torch.tensor(0.05))
    assert got.device == x.device
