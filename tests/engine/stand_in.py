"""The CPU in the place of a CUDA device, for fa.compile and for the captured step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from fake_graph import FakeGraphs
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from fastadv.engine import cuda_graph, inductor


@contextmanager
def standing_in() -> Iterator[list[FakeGraphs]]:
    """Gives the graphs that are made, in order. The graphs of AOTAutograd run op by op."""
    made: list[FakeGraphs] = []

    def make(device: torch.device) -> FakeGraphs:
        made.append(FakeGraphs(device))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor, "SERVES", {"cpu"})
        patch.setattr(inductor, "inner", aot_eager)
        patch.setattr(inductor, "why_plain", lambda: None)
        patch.setitem(cuda_graph.GRAPHS, "cpu", make)
        yield made


def small_net(seed: int = 0) -> nn.Module:
    """(N, 3, 8, 8) to 5 logits: convolutions, batch norm, dropout and a residual sum."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Residual().eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(6, 5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        return self.out(self.drop(x.mean((2, 3))))
