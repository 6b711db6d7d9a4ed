"""A model's own forward, where its weights learn: torch's, but for the convolutions that kernels of
ours serve faster, forward, by their input and by their weights.

Weights that learn change between two forwards, so they are packed in each, and the table of speeds
counts that, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastadv.engine import calls, speeds
from fastadv.engine.choice import NEAR, why_not_direct, why_not_winograd
from fastadv.engine.formats import ChannelsLast, in_format_of, is_image
from fastadv.engine.halves import autocasts
from fastadv.engine.reference_direct import Geometry, direct_weights
from fastadv.engine.reference_winograd import PLAIN as WHOLE
from fastadv.engine.reference_winograd import STRIDED, STRIDED_GRADIENT
from fastadv.engine.report import Row
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, PLAIN, WINOGRAD, Case
from fastadv.engine.variants import usual
from fastadv.ops import backend


class Kernels(NamedTuple):
    """What serves a convolution that learns, by the names of speeds.py."""

    forward: str
    gradient: str  # by its input
    weights: str  # its gradient by its weights


def learn(module: nn.Module, x: Tensor, contiguous: bool, rows: dict[Hashable, Row]) -> Any:
    """module(x), with gradients by the weights. contiguous: the model writes on views of its
    images, which would be copies if they were channels last. rows: what serves, for the report."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not len(x) or not backend().is_native:
        return module(x)
    turned = is_image(x) and not contiguous
    with _Convolutions(module, turned, rows) as mode:
        y = module(ChannelsLast.apply(x) if turned else x)  # type: ignore[no-untyped-call]
    mode.raise_if_written()
    return in_format_of(x, y)


class _Convolutions(TorchFunctionMode):
    """While it is entered, conv2d is ours where that is faster, and x.view(...) of images that are
    channels last, and have no such view, is x.reshape(...)."""

    def __init__(self, module: nn.Module, turned: bool, rows: dict[Hashable, Row]) -> None:
        super().__init__()
        self.module, self.turned, self.rows = module, turned, rows
        self.copies: list[Tensor] = []  # that a model takes for views

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is torch.conv2d:
            y = self._convolve(*args, **given)
            return func(*args, **given) if y is None else y
        if func is torch.Tensor.view and len(args) > 1 and not isinstance(args[1], torch.dtype):
            y = args[0].reshape(*args[1:])
            if y.data_ptr() != args[0].data_ptr():
                self.copies.append(y)
            return y
        return func(*args, **given)

    def raise_if_written(self) -> None:
        """Raises where the model wrote on what it took for a view: its images did not change."""
        if any(y._version for y in self.copies):
            raise RuntimeError(
                "the model writes in place on a view of its images, which fast.learn lays out "
                "otherwise: train the model itself, `fast.module`"
            )

    def _convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if groups != 1 or isinstance(padding, str) or not _is_served(input, weight, bias):
            return None
        size: Any = tuple(weight.shape[2:])
        geometry: Geometry = (size, _pair(stride), _pair(padding), _pair(dilation))
        kernels = _kernels_of(input, weight, geometry)
        self._note(weight, kernels)
        if set(kernels) == {ATEN}:
            return None
        y: Tensor = _Convolution.apply(input, weight, bias, geometry, kernels)  # type: ignore[no-untyped-call]
        return y if self.turned else y.contiguous()

    def _note(self, weight: Tensor, kernels: Kernels) -> None:
        shape = "x".join(map(str, weight.shape))
        key: Hashable = id(weight) if isinstance(weight, nn.Parameter) else shape
        if key not in self.rows:
            named = (name for name, p in self.module.named_parameters() if p is weight)
            layer = next(named, "(unnamed)").rpartition(".")[0]
            self.rows[key] = Row(layer, f"conv {shape}", ", ".join(kernels), _WHY)


_WHY = "by the table: forward, by the input, by the weights; with their packing"


class _Convolution(torch.autograd.Function):
    """conv2d, of which at least one part is a kernel of ours."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        kernels: Kernels,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.kernels = geometry, kernels
        y = _forward(x, weight, bias, geometry, kernels.forward)
        place = y.storage_offset(), y.shape, y.stride()
        return torch.empty(0).set_(y.untyped_storage(), *place)  # no view: a model may write on it

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3]
        kernels = ctx.kernels
        if torch.is_grad_enabled():  # create_graph: a gradient that has one itself is torch's
            kernels = Kernels(ATEN, ATEN, ATEN)
        return (
            _by_input(grad, x, weight, ctx.geometry, kernels.gradient) if by_x else None,
            _by_weight(grad, x, weight, ctx.geometry, kernels.weights) if by_weight else None,
            grad.sum((0, 2, 3)) if by_bias else None, None, None,
        )  # fmt: skip


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, kernel: str
) -> Tensor:
    _, stride, padding, dilation = geometry
    if kernel in (ATEN, PLAIN):
        given = x.contiguous() if kernel == PLAIN else x
        y = torch.conv2d(given, weight, bias, stride, padding, dilation)
        return y.contiguous(memory_format=torch.channels_last)
    size: Any = tuple(_sizes(x.shape[2:], geometry))
    if kernel == DIRECT:
        packed = direct_weights(weight, None, False, False)
        return calls.convolve_directly(x, packed, bias, None, len(weight), size, geometry)
    packed = calls.winograd_weights(weight, None, False, stride != (1, 1), False)
    form = WHOLE if stride == (1, 1) else STRIDED
    return calls.convolve(x, packed, bias, None, None, len(weight), size, padding[0], form)


def _by_input(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, kernel: str) -> Tensor:
    _, stride, padding, _ = geometry
    channels, size = x.shape[1], (x.shape[2], x.shape[3])
    if kernel in (ATEN, PLAIN):
        y = _backward(grad, x, weight, geometry, kernel, [True, False, False])[0]
        return y if kernel == ATEN else y.contiguous(memory_format=torch.channels_last)
    if kernel == FOLD:
        packed = direct_weights(weight, None, True, False)
        return calls.fold(grad, packed, None, None, channels, size, geometry)
    whole = stride == (1, 1)
    packed = calls.winograd_weights(weight, None, True, not whole, False)
    form = (2 - padding[0], WHOLE) if whole else (padding[0], STRIDED_GRADIENT)
    return calls.convolve(grad, packed, None, None, None, channels, size, *form)


def _by_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, kernel: str) -> Tensor:
    if kernel == WINOGRAD:
        return calls.winograd_weight_gradient(x, grad, geometry[2][0])
    return _backward(grad, x, weight, geometry, kernel, [False, True, False])[1]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, kernel: str, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """ATen's gradients, in memory as they are or, of PLAIN, contiguous."""
    _, stride, padding, dilation = geometry
    if kernel == PLAIN:  # of the input alone only the shape is read
        grad, x = grad.contiguous(), x.contiguous() if mask[1] else x.new_empty(x.shape)
    by_x, by_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, mask
    )
    return by_x, by_weight


def _pair(value: Any) -> tuple[int, int]:
    first, last = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(first), int(last)


def _is_served(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are images and weights as the kernels take them, and learn."""
    given = [x, weight] if bias is None else [x, weight, bias]
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 for t in given)
    wrapped = any(map(torch._C._functorch.is_functorch_wrapped_tensor, given))
    images = x.dim() == weight.dim() == 4 and x.numel() > 0 and x.shape[1] == weight.shape[1]
    return learns and plain and images and not wrapped and not autocasts()


def _sizes(size: Sequence[int], geometry: Geometry) -> list[int]:
    """The pixels of a convolution's output, down and across; 0 or less: torch says what is
    wrong."""
    return [
        (n + 2 * padding - dilation * (window - 1) - 1) // stride + 1
        for n, window, stride, padding, dilation in zip(size, *geometry, strict=True)
    ]


def _kernels_of(x: Tensor, weight: Tensor, geometry: Geometry) -> Kernels:
    outputs, inputs = weight.shape[:2]
    sizes = _sizes(x.shape[2:], geometry)
    if min(sizes) <= 0:
        return Kernels(ATEN, ATEN, ATEN)
    return _choose(geometry, inputs, outputs, *sizes, usual(len(x), False), speeds.threads())


@lru_cache(maxsize=4096)
def _choose(
    geometry: Geometry, inputs: int, outputs: int, rows: int, columns: int, batch: int, threads: int
) -> Kernels:
    """The fastest kernels for outputs (batch, outputs, rows, columns)."""
    window, stride, _, _ = geometry
    sizes = math.sqrt(math.prod(window)), math.sqrt(math.prod(stride))
    case = Case("convolution", *sizes, inputs, outputs, rows, columns, batch)
    direct = why_not_direct(geometry) is None
    forward = [WINOGRAD] * (why_not_winograd(geometry, inputs) is None) + [DIRECT] * direct
    backward = [WINOGRAD] * (why_not_winograd(geometry, outputs) is None) + [FOLD] * direct
    weights = [WINOGRAD] * (stride == (1, 1) and why_not_winograd(geometry, inputs) is None)
    return Kernels(
        _fastest(forward, case),
        _fastest(backward, case._replace(op="gradient")),
        _fastest(weights, case._replace(op="weight gradient"), packs=False),
    )


def _fastest(able: Sequence[str], case: Case, packs: bool = True) -> str:
    """The fastest of some kernels and ATen's, of which ours have their weights packed first, and
    the one for contiguous images turns them there and back: it must be faster by NEAR."""
    table = speeds.current()
    packing = case._replace(op="packing", height=1, width=1, batch=1)

    def seconds(kernel: str) -> float:
        found = table.seconds(kernel, case, "float32") or math.inf
        if kernel in able and packs:
            return found + (table.seconds(kernel, packing, "float32") or math.inf)
        return found * NEAR if kernel == PLAIN else found

    return min((ATEN, PLAIN, *able), key=seconds)
