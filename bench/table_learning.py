"""How bench.table calls what only learning weights need: their gradients, and their packing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from bench import gate
from bench.table_convolutions import Convolution
from fastadv.engine import calls
from fastadv.engine.reference_direct import direct_weights, unpack
from fastadv.engine.reference_winograd import winograd_weights
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, PLAIN, WINOGRAD, Case

Call = Callable[[], Tensor]
_TOLERANCE = 1e-5  # of the result's norm


def gated(case: Case) -> dict[str, Call]:
    """The kernels that could serve a case, each compared with float64 before."""
    return (_gradients if case.op == "weight gradient" else _packings)(case)


def _gradients(case: Case) -> dict[str, Call]:
    """The gradient of a convolution by its weights."""
    of = Convolution(case)
    _, stride, padding, dilation = (list(pair) for pair in of.geometry)

    def by_weight(grad: Tensor, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(
            grad, x, of.weight, None, stride, padding, dilation, False, [0, 0], 1,
            [False, True, False],
        )[1]  # fmt: skip
        return found

    contiguous = of.grad.contiguous(), of.x.contiguous()
    found: dict[str, Call] = {
        WINOGRAD: lambda: calls.winograd_weight_gradient(of.x, of.grad, padding[0]),
        ATEN: lambda: by_weight(of.grad, of.x),
        PLAIN: lambda: by_weight(*contiguous),
    }
    doubles = of.x.double(), of.weight.shape, of.grad.double()
    exact = conv2d_weight(*doubles, stride, padding)  # type: ignore[no-untyped-call]
    for kernel, call in found.items():
        gate.relative(f"{kernel} of {case}", call(), exact, _TOLERANCE)
    return found


def _packings(case: Case) -> dict[str, Call]:
    """Weights as a kernel reads them."""
    of = Convolution(case)
    weight, strided, kernel = of.weight, case.stride == 2, of.geometry[0]
    found: dict[str, Call] = {
        DIRECT: lambda: direct_weights(weight, None, False, False),
        FOLD: lambda: direct_weights(weight, None, True, False),
    }
    outputs, channels = weight.shape[:2]
    for name, gradient in ((DIRECT, False), (FOLD, True)):
        unpacked = unpack(found[name](), outputs, channels, gradient, kernel)
        gate.equal(f"{name} of {case}", unpacked, weight)
    if of.is_winograds():
        found[WINOGRAD] = lambda: calls.winograd_weights(weight, None, False, strided, False)
        exact = winograd_weights(weight.double(), None, False, strided)
        gate.relative(f"{WINOGRAD} of {case}", found[WINOGRAD](), exact, _TOLERANCE)
    return found
