"""The memory of a noted step: none is allocated, and none is the plan's."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest
import tables
import torch
from test_loop import LINF, Averaged, both, warm
from test_plan import gray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import fastadv as fa
from fastadv.engine.noting import Repeated

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
our_kernels = tables.our_kernels


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.parametrize("make", [gray, Averaged])
def test_a_step_allocates_nothing(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(16, *((1, 16, 16) if make is gray else (3, 32, 32)))
    fast, right = warm(make(), x), Repeated.run
    seen: list[tuple[int, int, int]] = []

    def watched(self: Repeated, times: int) -> None:
        right(self, 2)  # of what threads keep, the first has the pages
        before = faults()
        right(self, 20)
        fresh = faults() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
            right(self, 20)
        taken = [abs(e.self_cpu_memory_usage) for e in events.events()]
        seen.append((self.others, sum(taken), fresh))

    monkeypatch.setattr(Repeated, "run", watched)
    fa.bim(LINF, 0.001, 3)(fast, x, torch.arange(16) % 7)
    ((others, taken, fresh),) = seen
    assert (others, taken) == (0, 0)
    assert fresh < 20  # a page a step; the smallest result here has two


class Prototypes(nn.Module):
    """Logits that are dense, and not contiguous."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.kinds = nn.Parameter(torch.randn(classes, 16))

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.conv(x)).mean((2, 3))
        return (self.kinds @ features.T).T * 5


@pytest.mark.parametrize("classes", [10, 128, 256])
def test_what_a_step_needs_beside_its_plan_is_no_memory_of_the_plans(classes: int) -> None:
    model = Prototypes(classes).eval()
    x = torch.rand(16, 8, 16, 16)
    both(fa.bim(fa.L2(2.0), 0.2, 8), warm(model, x), x)
