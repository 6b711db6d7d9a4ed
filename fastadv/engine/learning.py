"""A model's own forward, where its weights learn: torch's, but for the convolutions that kernels of
ours serve faster, forward, by their input and by their weights. Which does, learning_choice.py
says.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastadv.engine import calls, learning_choice, spread
from fastadv.engine.formats import ChannelsLast, in_format_of, is_image
from fastadv.engine.halves import autocasts
from fastadv.engine.learning_choice import Kernels, sizes_of
from fastadv.engine.reference_direct import Geometry, direct_weights
from fastadv.engine.reference_winograd import PLAIN as WHOLE
from fastadv.engine.reference_winograd import STRIDED, STRIDED_GRADIENT
from fastadv.engine.report import Row
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, PLAIN, WINOGRAD
from fastadv.engine.spread import spread_bias, spread_weights, spreads
from fastadv.engine.variants import usual
from fastadv.ops import backend


class Learning:
    """A model's forwards where it learns, and what it was found to do with its images."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.rows: dict[Hashable, Row] = {}  # what serves, for the report
        self.watched = False  # whether a forward has been seen
        self.contiguous = False  # images stay as they are: views of theirs are written on, or read

    def __call__(self, x: Tensor) -> Any:
        """module(x), with gradients by the weights."""
        served = x.is_cpu and x.dtype == torch.float32 and len(x) and backend().is_native
        if not served or _is_transformed() or torch.is_inference_mode_enabled():
            return self.module(x)
        turned = is_image(x) and self.watched and not self.contiguous
        with _Convolutions(self, turned) as mode:
            y = self.module(ChannelsLast.apply(x) if turned else x)  # type: ignore[no-untyped-call]
        self.watched, written = True, mode.written()
        self.contiguous |= written or mode.strided
        if written and turned:
            raise RuntimeError(_WRITTEN)
        return in_format_of(x, y)


_WRITTEN = (
    "the model wrote in place on a view of its images, or on what that is a view of, as it had not "
    "in its first forward: the logits may be wrong. Call fast.learn(x) again, which from now on "
    "leaves images as they are"
)
_STRIDED = (torch.as_strided, torch.Tensor.as_strided)
_VIEWS = {
    torch.reshape, torch.flatten, torch.ravel, torch.Tensor.reshape, torch.Tensor.flatten,
    torch.Tensor.ravel, torch.Tensor.view, torch.Tensor.contiguous, *_STRIDED,
}  # fmt: skip


class _Convolutions(TorchFunctionMode):
    """While it is entered, conv2d is ours where that is faster.

    Of images that are channels last a flat view is a copy, or raises. So a model's first forward
    has them contiguous, and shows whether it asks for such views, or writes on them.
    """

    def __init__(self, learning: Learning, turned: bool) -> None:
        super().__init__()
        self.turned, self.rows = turned, learning.rows
        self.layers = {
            id(p): name.rpartition(".")[0] for name, p in learning.module.named_parameters()
        }
        self.watched: list[tuple[Tensor, int]] = []  # views and what they are of, and their version
        self.strided = False  # whether a view depends on how images are laid out,
        self.other = False  # and was another one

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
        if func not in _VIEWS:
            return func(*args, **given)
        x, *more = (*args, *given.values())
        try:
            y = func(*args, **given)
        except RuntimeError:
            if func is not torch.Tensor.view or not self.turned:
                raise
            y, self.strided = x.reshape(*more), True  # and a copy
        if x.dim() == 4 or self.strided:
            self.watched += [(t, t._version) for t in (x, y)]
        if func is torch.Tensor.view and x.dim() == 4 and not self.turned:
            self.strided |= not _holds_channels_last(x, more)
        if func in _STRIDED:
            self.strided, self.other = True, self.turned
        return y

    def written(self) -> bool:
        """Whether the model is another one where its images are channels last."""
        return self.other or any(t._version != version for t, version in self.watched)

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
        batch = usual(len(input), False)
        kernels = learning_choice.kernels_of(input, weight, geometry, batch)
        layer = self.layers.get(id(weight), "(computed)")
        shape = "x".join(map(str, weight.shape))
        row = Row(layer, f"conv {shape}, batches like {batch}", ", ".join(kernels), _WHY)
        self.rows[layer, shape, batch] = row
        if set(kernels) == {ATEN}:
            return None
        y: Tensor = _Convolution.apply(input, weight, bias, geometry, kernels)  # type: ignore[no-untyped-call]
        return y if self.turned else y.contiguous()


def _holds_channels_last(x: Tensor, shape: list[Any]) -> bool:
    """Whether x.view(shape) holds for x channels last, too."""
    like = torch.empty(x.shape, device="meta").contiguous(memory_format=torch.channels_last)
    try:
        like.view(*shape)
    except RuntimeError:
        return False
    return True


def _is_transformed() -> bool:
    """Whether torch.func, or forward-mode autograd, asks: a Function of ours has no rule for it."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return inside or torch.autograd.forward_ad._current_level >= 0


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
        place = y.storage_offset(), y.shape, y.stride()  # no view: a model may write on it
        return torch.empty(0, dtype=y.dtype, device="cpu").set_(y.untyped_storage(), *place)

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
    size: Any = tuple(sizes_of(x.shape[2:], geometry))
    bias = None if bias is None else bias.contiguous()
    if kernel == DIRECT and spreads(geometry, size, *weight.shape[:2]):
        packed = spread_weights(weight, None, False, False, size)
        shift = None if bias is None else spread_bias(bias, size[0] * size[1])
        return spread.convolve(x, packed, shift, None, len(weight), size)
    if kernel == DIRECT:
        packed = direct_weights(weight, None, False, False)
        return calls.convolve_directly(x, packed, bias, None, len(weight), size, geometry)
    packed = calls.winograd_weights(weight, None, False, stride != (1, 1), False)
    form = WHOLE if stride == (1, 1) else STRIDED
    return calls.convolve(x, packed, bias, None, len(weight), size, padding[0], form)


def _by_input(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, kernel: str) -> Tensor:
    _, stride, padding, _ = geometry
    channels, size = x.shape[1], (x.shape[2], x.shape[3])
    if kernel in (ATEN, PLAIN):
        y = _backward(grad, x, weight, geometry, kernel, [True, False, False])[0]
        return y if kernel == ATEN else y.contiguous(memory_format=torch.channels_last)
    if kernel == FOLD and spreads(geometry, size, *weight.shape[:2]):
        packed = spread_weights(weight, None, True, False, size)
        return spread.gradient(grad, packed, None, None, channels, size)
    if kernel == FOLD:
        packed = direct_weights(weight, None, True, False)
        return calls.fold(grad, packed, None, None, channels, size, geometry)
    whole = stride == (1, 1)
    packed = calls.winograd_weights(weight, None, True, not whole, False)
    form = (2 - padding[0], WHOLE) if whole else (padding[0], STRIDED_GRADIENT)
    return calls.convolve_gradient(grad, packed, None, None, channels, size, *form)


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
    first, last = (value[0], value[-1]) if hasattr(value, "__len__") else (value, value)
    return int(first), int(last)


def _is_served(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are images and weights as the kernels take them, and learn."""
    given = [x, weight] if bias is None else [x, weight, bias]
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    dense = all(
        type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.is_cpu
        and t.layout == torch.strided for t in given
    )  # fmt: skip
    images = x.dim() == weight.dim() == 4 and x.numel() > 0 and x.shape[1] == weight.shape[1]
    return learns and dense and images and not autocasts() and not _is_transformed()
