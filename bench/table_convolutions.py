"""How bench.table calls a convolution, or its gradient: each kernel as a rewritten graph does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from fastadv.engine import calls, spread
from fastadv.engine.reference import pack_signs
from fastadv.engine.reference_direct import Geometry, direct_weights
from fastadv.engine.reference_winograd import PLAIN as PLAIN_FORM
from fastadv.engine.reference_winograd import STRIDED, STRIDED_GRADIENT
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, PLAIN, WINOGRAD, Case
from fastadv.engine.spread import spread_bias, spread_weights, spreads

Call = Callable[[], Tensor]


class Convolution:
    """A case's tensors: x, what its gradient is given, and a mask that the gradient is cut by."""

    def __init__(self, case: Case) -> None:
        window, stride, n = int(case.window), int(case.stride), int(case.batch)
        around = window // 2 if window % 2 else 0
        self.geometry: Geometry = ((window,) * 2, (stride,) * 2, (around,) * 2, (1, 1))
        self.side, self.small = case.height * stride, case.height
        self.inputs, self.outputs = case.inputs, case.outputs
        self.form = _images(n, case.inputs, self.side), _images(n, case.outputs, self.small)
        self.x, self.grad = self.form
        self.weight = torch.randn(case.outputs, case.inputs, window, window)
        self.weight /= (case.inputs * window**2) ** 0.5
        self.bias = torch.randn(case.outputs)
        # The first layer's gradient is the image's: no ReLU stands before it.
        self.passed = torch.randn(self.x.shape) > 0 if case.inputs > 4 else None
        self.mask = None if self.passed is None else pack_signs(self.passed.permute(0, 2, 3, 1))

    def is_winograds(self) -> bool:
        window, stride, _, _ = self.geometry
        return window == (3, 3) and stride in ((1, 1), (2, 2))

    def forward(self, bfloat16: bool) -> dict[str, Call]:
        """relu(convolution(x)) by each kernel of ours."""
        x, bias, padding = self.x, self.bias, self.geometry[2][0]
        size, plain = (self.small, self.small), self.geometry[1] == (1, 1)
        found: dict[str, Call] = {}
        if spreads(self.geometry, size, self.inputs, self.outputs):
            spread_out = spread_weights(self.weight, None, False, bfloat16, size)
            shift = spread_bias(bias, self.small**2)
            small = (x, spread_out, shift, None, self.outputs, size)
            found[DIRECT] = lambda: spread.convolve_activated(*small)[0]
        else:
            packed = direct_weights(self.weight, None, False, bfloat16)
            call = (x, packed, bias, None, self.outputs, size, self.geometry)
            found[DIRECT] = lambda: calls.convolve_activated_directly(*call)[0]
        if self.is_winograds():
            turned = calls.winograd_weights(self.weight, None, False, not plain, bfloat16)
            form = padding, PLAIN_FORM if plain else STRIDED
            given = (x, turned, bias, None, self.outputs, size, *form)
            found[WINOGRAD] = lambda: calls.convolve_activated(*given)[0]
        return found

    def gradient(self, bfloat16: bool) -> dict[str, Call]:
        """The gradient by x by each kernel of ours."""
        grad, padding, mask = self.grad, self.geometry[2][0], self.mask
        size, plain = (self.side, self.side), self.geometry[1] == (1, 1)
        found: dict[str, Call] = {}
        if spreads(self.geometry, size, self.inputs, self.outputs):
            spread_out = spread_weights(self.weight, None, True, bfloat16, size)
            small = (grad, spread_out, None, mask, self.inputs, size)
            found[FOLD] = lambda: spread.gradient(*small)
        else:
            packed = direct_weights(self.weight, None, True, bfloat16)
            call = (grad, packed, None, mask, self.inputs, size, self.geometry)
            found[FOLD] = lambda: calls.fold(*call)
        if self.is_winograds():
            turned = calls.winograd_weights(self.weight, None, True, not plain, bfloat16)
            form = (2 - padding, PLAIN_FORM) if plain else (padding, STRIDED_GRADIENT)
            given = (grad, turned, None, mask, self.inputs, size, *form)
            found[WINOGRAD] = lambda: calls.convolve_gradient(*given)
        return found

    def atens_forward(self) -> dict[str, Call]:
        _, stride, padding, _ = self.geometry
        x, w, bias = self.x, self.weight, self.bias
        contiguous = x.contiguous()
        return {
            ATEN: lambda: calls.activate(torch.conv2d(x, w, bias, stride, padding))[0],
            PLAIN: lambda: torch.relu(torch.conv2d(contiguous, w, bias, stride, padding)),
        }

    def atens_gradient(self) -> dict[str, Call]:
        _, stride, padding, dilation = (list(pair) for pair in self.geometry)
        grad, w, mask, shape = self.grad, self.weight, self.mask, tuple(self.x.shape[1:])
        like, given = self.x.contiguous(), grad.contiguous()
        kept = None if self.passed is None else self.passed.float().contiguous()
        more = (stride, padding, dilation, False, [0, 0], 1)

        def aten() -> Tensor:
            y = calls.input_gradient(grad, w, shape, *more)
            return y if mask is None else calls.times_slopes(y, None, mask)

        def plain() -> Tensor:
            y: Tensor = torch.ops.aten.convolution_backward(
                given, like, w, None, *more, [True, False, False]
            )[0]
            return y if kept is None else torch.ops.aten.threshold_backward(y, kept, 0)

        return {ATEN: aten, PLAIN: plain}

    def exact(self, gradient: bool) -> Tensor:
        """The first and the last sample's result, in float64."""
        ends = [0, -1]
        _, stride, padding, _ = self.geometry
        w = self.weight.double()
        if not gradient:
            x = self.x[ends].double()
            return torch.conv2d(x, w, self.bias.double(), stride, padding).relu()
        grad = self.grad[ends].double()
        shape = (2, self.inputs, self.side, self.side)
        y: Tensor = conv2d_input(shape, w, grad, stride, padding)  # type: ignore[no-untyped-call]
        return y if self.passed is None else torch.where(self.passed[ends], y, 0)


def _images(n: int, channels: int, side: int) -> Tensor:
    return torch.randn(n, side, side, channels).permute(0, 3, 1, 2)
