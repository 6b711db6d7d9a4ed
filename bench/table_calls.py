"""What a compiled graph costs beside its kernels: Dynamo's guards, AOTAutograd's wrappers, and a
layer's share of them.

Nets of grouped convolutions are served by ATen either way, so the compiled gradient's time less
plain torch's is all cost: of a net of few layers, and of one of many.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor, nn

import fastadv as fa
from bench import gate
from bench.timing import Clock, interleave
from fastadv.engine import speeds, worth

_DEPTHS = (2, 10)


def cost(seconds: float, clock: Clock) -> tuple[float, float]:
    """Seconds that a graph costs, and that each of its layers' rows costs, forward and gradient.

    Raises GateError where the compiled net's gradient is not plain torch's.
    """
    extra = [_extra(depth, seconds / len(_DEPTHS), clock) for depth in _DEPTHS]
    rows = [2 * depth for depth in _DEPTHS]
    layer = max(0.0, (extra[1] - extra[0]) / (rows[1] - rows[0]))
    return max(0.0, extra[0] - layer * rows[0]), layer


def _extra(depth: int, seconds: float, clock: Clock) -> float:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Threshold(-1e9, 0.0)]
    plain = nn.Sequential(*layers, nn.Flatten()).eval().requires_grad_(False)
    compiled_anyhow = mock.patch.object(worth, "least_batch", return_value=2)
    by_no_table = mock.patch.object(speeds, "threads", return_value=1)
    with compiled_anyhow, by_no_table, torch.enable_grad():
        fast, x = fa.compile(plain), torch.randn(8, 8, 4, 4)
        gate.relative("the compiled gradient", _gradient(fast, x), _gradient(plain, x), 1e-4)
        cases = {"fast": lambda: _gradient(fast, x), "plain": lambda: _gradient(plain, x)}
        times = interleave(cases, seconds, least_rounds=51, warm_up=20, clock=clock)
    return times["fast"].quantile(50) - times["plain"].quantile(50)


def _gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).sum(), leaf)[0]
