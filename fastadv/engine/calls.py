"""What the rewritten graphs call. Images are (N, C, H, W) as torch has them, channels last."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.engine.pool import pool
from fastadv.engine.reference import sign_bytes
from fastadv.engine.reference_activations import NONE, RELU, Activation, has_two_slopes
from fastadv.engine.reference_direct import Geometry, Pair, direct_weights
from fastadv.engine.reference_pool import room
from fastadv.engine.reference_winograd import learn_scratch, transformed_shape

_ops = torch.ops.fastadv


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C), contiguous; a copy if the memory is in another order."""
    if x.dim() == 2:  # images of one pixel
        return x.contiguous()[:, None, None]
    return x.permute(0, 2, 3, 1).contiguous()


def _images(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


def _like(x: Tensor, y: Tensor) -> Tensor:
    """y (N, H, W, C) as images or, where x is, as rows."""
    return y.flatten(1) if x.dim() == 2 else _images(y)


def _kept_like(y: Tensor, activation: Activation, keeps: bool) -> Tensor | None:
    """What an activation keeps of rows y for its gradient."""
    if not keeps:
        return None
    if not has_two_slopes(int(activation[0])):
        return pool.empty(tuple(y.shape), torch.float32)
    return pool.empty((*y.shape[:3], sign_bytes(y.shape[3])), torch.uint8)


def winograd_weights(
    weight: Tensor, scale: Tensor | None, gradient: bool, strided: bool, bfloat16: bool
) -> Tensor:
    """reference_winograd.winograd_weights, in one pass."""
    outputs, channels = weight.shape[:2] if not gradient else weight.shape[1::-1]
    shape, dtype = transformed_shape(outputs, channels, bfloat16)
    packed = pool.empty(shape, dtype)
    _ops.winograd_weights_(packed, weight.detach().contiguous(), scale, gradient, strided)
    return packed


def winograd_weight_gradient(x: Tensor, grad: Tensor, padding: int) -> Tensor:
    """The gradient (K, C, 3, 3) of a convolution of stride 1 by its weights."""
    rows, grads = _rows(x), _rows(grad)
    weight = pool.empty((grad.shape[1], x.shape[1], 3, 3), torch.float32)
    scratch = pool.empty((learn_scratch(rows, grads),), torch.float32)
    _ops.winograd_weight_gradient_(weight, scratch, rows, grads, padding)
    return weight


def convolve(
    x: Tensor,  # (N, C, H, W)
    weights: Tensor,  # as reference_winograd.winograd_weights gives them
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    size: tuple[int, int],  # of y
    padding: int,
    form: int,
) -> Tensor:  # (N, outputs, *size)
    """conv3x3(x) + bias + residual."""
    more = (outputs, size, padding, form, NONE, False)
    return convolve_activated(x, weights, bias, residual, *more)[0]


def convolve_activated(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: tuple[int, int], padding: int, form: int, activation: Activation = RELU,
    keeps: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(activation(convolve), what is kept of it for its gradient)."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, outputs), torch.float32)
    kept = _kept_like(y, activation, keeps)
    added = None if residual is None else _rows(residual)
    if len(rows):
        form_of = (padding, form, int(activation[0]), activation[1:])
        _ops.winograd_(y, kept, rows, weights, bias, added, *form_of)
    return _images(y), kept


def convolve_gradient(
    grad: Tensor,  # (N, K, H, W), of a convolution's output
    weights: Tensor,  # as winograd_weights gives them for a gradient
    residual: Tensor | None,
    slopes: Tensor | None,
    channels: int,
    size: tuple[int, int],
    padding: int,
    form: int,
    leak: float = 0.0,
) -> Tensor:  # (N, channels, *size)
    """(A convolution's gradient by its input + residual) * slopes: those of the activation before
    it, as that kept them; leak: the slope where they are bits and there is none."""
    rows = _rows(grad)
    y = pool.empty((len(rows), *size, channels), torch.float32)
    added = None if residual is None else _rows(residual)
    if len(rows):
        _ops.winograd_gradient_(y, rows, weights, added, slopes, leak, padding, form)
    return _images(y)


def convolve_directly(
    x: Tensor,  # (N, C, H, W)
    weights: Tensor,  # as direct_weights gives them, or depthwise_weights: (taps, C)
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    size: tuple[int, int],  # of y
    geometry: Geometry,
) -> Tensor:  # (N, outputs, *size)
    """conv(x) + bias + residual, of each channel by itself where the weights are so."""
    more = (outputs, size, geometry, NONE, False)
    return convolve_activated_directly(x, weights, bias, residual, *more)[0]


def convolve_activated_directly(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: tuple[int, int], geometry: Geometry, activation: Activation = RELU, keeps: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(activation(convolve_directly), what is kept of it for its gradient)."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, outputs), torch.float32)
    kept = _kept_like(y, activation, keeps)
    added = None if residual is None else _rows(residual)
    op = _ops.depthwise_ if weights.dim() == 2 else _ops.direct_
    op(y, kept, rows, weights, bias, added, *geometry, int(activation[0]), activation[1:])
    return _images(y), kept


def linear_weights(weight: Tensor, gradient: bool, bfloat16: bool) -> Tensor:
    """direct_weights of a linear layer (K, C), or of its gradient."""
    w = weight.t() if gradient else weight
    return direct_weights(w[:, :, None, None], None, False, bfloat16)


def linear(
    x: Tensor,  # (*shape, C)
    weights: Tensor,  # as linear_weights gives them
    bias: Tensor | None,
    outputs: int,
    residual: Tensor | None = None,
    narrow: bool = False,
) -> Tensor:  # (*shape, outputs), in memory as x is; bfloat16 where `narrow`
    """A linear layer, or its gradient, + residual."""
    return Lines(x).product(weights, bias, outputs, residual, narrow)


class Lines:
    """The rows of x (*shape, C) in the order in which they stand in memory: where x is a view whose
    dimensions are exchanged, what is computed of its rows is such a view too, and nothing is
    copied."""

    def __init__(self, x: Tensor) -> None:
        self.order: list[int] | None = None
        if not x.is_contiguous():
            strides, last = x.stride(), x.dim() - 1
            order = [*sorted(range(last), key=lambda d: -strides[d]), last]
            turned = x.permute(order)
            if turned.is_contiguous():
                self.order, x = order, turned
        self.shape = x.shape[:-1]
        self.rows = x.reshape(-1, x.shape[-1])

    def given(self, t: Tensor) -> Tensor:
        """The rows of another tensor of the same shape, in x's order."""
        t = t if self.order is None else t.permute(self.order)
        return t.reshape(-1, t.shape[-1]).contiguous()

    def taken(self, rows: Tensor) -> Tensor:
        """The tensor whose rows these are."""
        y = rows.view(*self.shape, rows.shape[-1])
        if self.order is None:
            return y
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return y.permute(back)

    def product(
        self, weights: Tensor, bias: Tensor | None, outputs: int, residual: Tensor | None,
        narrow: bool, slopes: Tensor | None = None, finish: int = 0,
    ) -> Tensor:  # fmt: skip
        """The op linear_ on these rows; slopes: rows in the same order."""
        dtype = torch.bfloat16 if narrow else torch.float32
        y = pool.empty((len(self.rows), outputs), dtype)
        added = None if residual is None else self.given(residual)
        _ops.linear_(y, slopes, self.rows.contiguous(), weights, bias, added, finish)
        return self.taken(y)


def fold(
    grad: Tensor,  # (N, K, H, W), of a convolution's output
    weights: Tensor,  # as direct_weights gives them for a gradient, or depthwise_weights
    residual: Tensor | None,
    slopes: Tensor | None,
    channels: int,
    size: tuple[int, int],
    geometry: Geometry,
    leak: float = 0.0,
) -> Tensor:  # (N, channels, *size)
    """convolve_gradient, of a direct convolution."""
    rows = _rows(grad)
    y = pool.empty((len(rows), *size, channels), torch.float32)
    added = None if residual is None else _rows(residual)
    op = _ops.depthwise_gradient_ if weights.dim() == 2 else _ops.fold_
    op(y, rows, weights, added, slopes, leak, *geometry)
    return _images(y)


def max_pool(
    x: Tensor, size: tuple[int, int], kernel: Pair, stride: Pair, padding: Pair
) -> tuple[Tensor, Tensor]:  # (N, C, *size), and which tap of its window each number was
    """x's largest numbers under a window."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, rows.shape[3]), torch.float32)
    taken = pool.empty((len(rows), *size, room(rows.shape[3])), torch.uint8)
    _ops.max_pool_(y, taken, rows, kernel, stride, padding)
    return _images(y), taken


def max_pool_gradient(
    grad: Tensor, taken: Tensor, residual: Tensor | None, slopes: Tensor | None,
    size: tuple[int, int], kernel: Pair, stride: Pair, padding: Pair, leak: float = 0.0,
) -> Tensor:  # fmt: skip
    """(The gradient of max_pool by its input (N, C, *size) + residual) * slopes."""
    rows = _rows(grad)
    y = pool.empty((len(rows), *size, rows.shape[3]), torch.float32)
    added = None if residual is None else _rows(residual)
    _ops.max_pool_gradient_(y, rows, taken, added, slopes, leak, kernel, stride, padding)
    return _images(y)


def mean(x: Tensor, keeps: bool) -> Tensor:  # (N, C, H, W) -> (N, C), or (N, C, 1, 1)
    """The mean over all pixels."""
    rows = _rows(x).flatten(1, 2)
    y = pool.empty((rows.shape[0], rows.shape[2]), torch.float32)
    _ops.mean_(y, rows, False)
    return y[:, :, None, None] if keeps else y


def mean_gradient(grad: Tensor, size: tuple[int, int]) -> Tensor:  # (N, C, 1, 1) -> (N, C, *size)
    """The gradient of mean by its input."""
    rows = grad.flatten(1).contiguous()
    y = pool.empty((rows.shape[0], *size, rows.shape[1]), torch.float32)
    _ops.mean_(y.flatten(1, 2), rows, True)
    return _images(y)


def activate(
    x: Tensor, other: Tensor | None = None, activation: Activation = RELU,
    scale: Tensor | None = None, shift: Tensor | None = None, keeps: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(activation((x + other) * scale + shift), what is kept of it for its gradient), scale and
    shift a channel, or none."""
    rows = _rows(x)
    y = pool.empty(tuple(rows.shape), torch.float32)
    kept = _kept_like(y, activation, keeps)
    added = None if other is None else _rows(other)
    _ops.activate_(y, kept, rows, added, scale, shift, int(activation[0]), activation[1:])
    return _like(x, y), kept


def times_slopes(
    grad: Tensor, other: Tensor | None, slopes: Tensor, leak: float = 0.0,
    scale: Tensor | None = None, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(grad + other) * slopes * scale + residual: the gradient of activate by x, and another."""
    rows = _rows(grad)
    y = pool.empty(tuple(rows.shape), torch.float32)
    terms = [None if term is None else _rows(term) for term in (other, residual)]
    _ops.activate_gradient_(y, rows, slopes, leak, terms[0], scale, terms[1])
    return _like(grad, y)


def input_gradient(
    grad: Tensor, weight: Tensor, shape: tuple[int, ...], stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The gradient of a convolution by its input (N, *shape), as ATen computes it.

    ATen reads nothing of the input but its shape and its memory format, which the gradient then
    has: no activation is kept for it.
    """
    stub = grad.new_empty((grad.shape[0], *shape))
    if len(shape) == 3 and grad.is_contiguous(memory_format=torch.channels_last):
        stub = _images(pool.empty((grad.shape[0], shape[1], shape[2], shape[0]), grad.dtype))
    result: Tensor = torch.ops.aten.convolution_backward(
        grad, stub, weight, None, stride, padding, dilation, transposed, output_padding, groups,
        [True, False, False],
    )[0]  # fmt: skip
    return result
