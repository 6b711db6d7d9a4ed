"""What the tests share: small models with every kind of state, data, and hypothesis' settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch._dynamo  # or it would come within a test, with the log's handlers: see _no_trace
from hypothesis import HealthCheck, settings
from torch import Tensor, nn
from two_ranks import two_ranks as two_ranks

from fastadv.engine import worth

settings.register_profile(
    "fastadv",
    derandomize=True,
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fastadv")

# The models here are tiny: a second thread would only wait. Tests of threads take their own.
torch.set_num_threads(1)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """torch on n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """(N, 6) to 3 logits, without a kink: two runs that differ by a rounding stay together."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype).eval()


def image_net() -> nn.Module:
    """(N, 3, 6, 6) to 4 logits, with batch norm and dropout, half of it in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(80, 4),
        )  # fmt: skip
    net.train()
    net[1].eval()
    return net


class LinearPair(nn.Module):
    """Logits (0, w . x): the margin of class 0 is w . x, so every optimum has a closed form."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        # A sum a row, not a matrix product: a sample's bits do not depend on its batch.
        z = (x * self.w.to(x.dtype)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    g = seeded(5)
    return torch.rand(5, 3, 6, 6, generator=g), torch.randint(0, 4, (5,), generator=g)


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    g = seeded(6)
    return torch.rand(12, 6, generator=g).double(), torch.randint(0, 3, (12,), generator=g)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random starts without a generator draw from torch's: the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compiled_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's nets here are small: in use they would run as plain torch."""
    monkeypatch.setattr(worth, "least_batch", lambda made, graphs, layers, batches: batches[0])


@pytest.fixture(autouse=True)
def _no_trace() -> None:
    """torch's trace of a compile goes to pytest's log unless stopped, and takes longer than it."""
    trace = logging.getLogger("torch.__trace")
    trace.propagate = False
    trace.handlers.clear()
