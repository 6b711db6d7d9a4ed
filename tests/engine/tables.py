"""Tables of speeds that were never measured, and graphs of one convolution to choose for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from fastadv.engine import speeds
from fastadv.engine.graph import CONVOLUTION, CONVOLUTION_BACKWARD
from fastadv.engine.speeds import ATEN, PLAIN, Case, Measured, Speeds

CASE = Case("convolution", 3, 1, 16, 16, 8, 8, 8)
# A call of each kernel costs a microsecond, whatever it computes.
EMPTY = 1e-6


def rows(case: Case = CASE, **seconds: float) -> list[Measured]:
    """A case's seconds, and those of a case of nearly no work."""
    none = case._replace(inputs=1, outputs=1, height=1, width=1, batch=1)
    return [Measured(case, seconds), Measured(none, dict.fromkeys(seconds, EMPTY))]


def of(*ops: str, precision: str = "float32", case: Case = CASE, **seconds: float) -> Speeds:
    """The same seconds of some ops for one case."""
    return Speeds({(op, precision): rows(case._replace(op=op), **seconds) for op in ops})


class Ranked(Speeds):
    """All that can serve serves, the first of some kernels before the others."""

    def __init__(self, *kernels: str) -> None:
        super().__init__({})
        object.__setattr__(self, "kernels", (*kernels, ATEN, PLAIN))

    def seconds(self, kernel: str, case: Case, precision: str) -> float | None:
        order: tuple[str, ...] = self.kernels  # type: ignore[attr-defined]
        return EMPTY * (1 + order.index(kernel)) if kernel in order else None


@pytest.fixture(autouse=True)
def our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They serve wherever they can: for tests that are not about the choice."""
    ranked = Ranked("winograd", "direct", "fold", "depthwise")
    monkeypatch.setattr(speeds, "current", lambda: ranked)


def convolution(
    inputs: int = 16, outputs: int = 16, window: int = 3, stride: int = 1, pixels: int = 8,
    batch: int = 8, padding: int | None = None, dilation: int = 1, groups: int = 1,
    gradient: bool = False,
) -> fx.Node:  # fmt: skip
    """A convolution of a model's weight, or its gradient, in a graph of its own."""
    around = window // 2 if padding is None else padding
    form = ([stride] * 2, [around] * 2, [dilation] * 2, False, [0, 0], groups)
    x, w = images(batch, inputs, pixels), torch.zeros(outputs, inputs // groups, window, window)
    y = torch.conv2d(x, w, None, *form[:3], groups)
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in ("x", "w", "grad")]
    for node, val in zip(nodes, (x, w, y), strict=True):
        node.meta["val"] = val
    nodes[1].meta["source"] = "L['module']._parameters['weight']"
    if gradient:
        args = (nodes[2], nodes[0], nodes[1], None, *form, [True, False, False])
        made = graph.call_function(CONVOLUTION_BACKWARD, args)
        made.meta["val"] = (x, None, None)
    else:
        made = graph.call_function(CONVOLUTION, (nodes[0], nodes[1], None, *form))
        made.meta["val"] = y
    return made


def images(n: int, channels: int, side: int) -> Tensor:
    return torch.zeros(n, side, side, channels).permute(0, 3, 1, 2)
