"""How bench.table calls a convolution of each channel by itself, or its gradient: as a rewritten
graph does, and as plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from fastadv.engine import calls
from fastadv.engine.reference import pack_signs
from fastadv.engine.reference_direct import Geometry, depthwise_weights
from fastadv.engine.speeds import ATEN, DEPTHWISE, PLAIN, Case

Call = Callable[[], Tensor]


class Depthwise:
    """A case's tensors, with a ReLU after the convolution, and a mask after its gradient."""

    def __init__(self, case: Case) -> None:
        window, stride, n = int(case.window), int(case.stride), int(case.batch)
        self.channels, self.small, self.large = case.inputs, case.height, case.height * stride
        pair = (window // 2,) * 2
        self.geometry: Geometry = ((window,) * 2, (stride,) * 2, pair, (1, 1))
        self.x, self.grad = (self._images(n, side) for side in (self.large, self.small))
        self.weight = torch.randn(case.inputs, 1, window, window) / window
        self.bias = torch.randn(case.inputs)
        self.passed = self._images(n, self.large) > 0
        self.mask = pack_signs(self.passed.permute(0, 2, 3, 1))

    def _images(self, n: int, side: int) -> Tensor:
        return torch.randn(n, side, side, self.channels).permute(0, 3, 1, 2)

    def forward(self) -> tuple[dict[str, Call], dict[str, Call]]:
        """relu(convolution(x)): by our kernel, and by ATen's."""
        packed, size = depthwise_weights(self.weight, None), (self.small, self.small)
        call = (self.x, packed, self.bias, None, self.channels, size, self.geometry)
        contiguous = self.x.contiguous()
        own = {DEPTHWISE: lambda: calls.convolve_activated_directly(*call)[0]}
        return own, {
            ATEN: lambda: calls.activate(self._convolved(self.x))[0],
            PLAIN: lambda: self._convolved(contiguous).relu(),
        }

    def _convolved(self, x: Tensor) -> Tensor:
        _, stride, padding, _ = self.geometry
        weight, bias = self.weight.to(x), self.bias.to(x)
        y: Tensor = torch.conv2d(x, weight, bias, stride, padding, 1, self.channels)
        return y

    def gradient(self) -> tuple[dict[str, Call], dict[str, Call]]:
        """The gradient by x, masked."""
        packed, size = depthwise_weights(self.weight, None), (self.large, self.large)
        call = (self.grad, packed, None, self.mask, self.channels, size, self.geometry)
        own = {DEPTHWISE: lambda: calls.fold(*call)}
        _, stride, padding, dilation = (list(pair) for pair in self.geometry)
        more = (stride, padding, dilation, False, [0, 0], self.channels)
        like, given = self.x.contiguous(), self.grad.contiguous()
        kept, shape = self.passed.float().contiguous(), tuple(self.x.shape[1:])

        def aten() -> Tensor:
            y = calls.input_gradient(self.grad, self.weight, shape, *more)
            return calls.times_slopes(y, None, self.mask)

        def plain() -> Tensor:
            y: Tensor = torch.ops.aten.convolution_backward(
                given, like, self.weight, None, *more, [True, False, False]
            )[0]
            y = torch.ops.aten.threshold_backward(y, kept, 0)
            return y

        return own, {ATEN: aten, PLAIN: plain}

    def exact(self, gradient: bool) -> Tensor:
        """Of the first sample and the last, in float64."""
        ends, (_, stride, padding, _) = [0, -1], self.geometry
        if not gradient:
            return self._convolved(self.x[ends].double()).relu()
        grad, weight = self.grad[ends].double(), self.weight.double()
        shape = (2, *self.x.shape[1:])
        y: Tensor = conv2d_input(shape, weight, grad, stride, padding, 1, self.channels)  # type: ignore[no-untyped-call]
        return torch.where(self.passed[ends], y, 0)
