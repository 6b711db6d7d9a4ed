"""What the rewritten graphs call. Images are (N, C, H, W) as torch has them, channels last."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.engine.pool import pool
from fastadv.engine.reference import sign_bytes
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


def _signs_like(y: Tensor) -> Tensor:
    n, height, width, channels = y.shape
    return pool.empty((n, height, width, sign_bytes(channels)), torch.uint8)


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
    mask: Tensor | None,
    outputs: int,
    size: tuple[int, int],  # of y
    padding: int,
    form: int,
) -> Tensor:  # (N, outputs, *size)
    """conv3x3(x) + bias + residual, and zero where the mask has no bit."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, outputs), torch.float32)
    added = None if residual is None else _rows(residual)
    if len(rows):
        _ops.winograd_(y, None, rows, weights, bias, added, mask, padding, form, False)
    return _images(y)


def convolve_unmasked(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: tuple[int, int], padding: int, form: int,
) -> Tensor:  # fmt: skip
    """convolve, of a layer that no ReLU follows."""
    return convolve(x, weights, bias, residual, None, outputs, size, padding, form)


def convolve_relu(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: tuple[int, int], padding: int, form: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(relu(conv3x3(x) + bias + residual), its signs)."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, outputs), torch.float32)
    signs = _signs_like(y)
    added = None if residual is None else _rows(residual)
    if len(rows):
        _ops.winograd_(y, signs, rows, weights, bias, added, None, padding, form, True)
    return _images(y), signs


def convolve_directly(
    x: Tensor,  # (N, C, H, W)
    weights: Tensor,  # as direct_weights gives them
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    size: tuple[int, int],  # of y
    geometry: Geometry,
) -> Tensor:  # (N, outputs, *size)
    """conv(x) + bias + residual."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, outputs), torch.float32)
    added = None if residual is None else _rows(residual)
    _ops.direct_(y, None, rows, weights, bias, added, *geometry, False)
    return _images(y)


def convolve_relu_directly(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: tuple[int, int], geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(relu(conv(x) + bias + residual), its signs)."""
    rows = _rows(x)
    y = pool.empty((len(rows), *size, outputs), torch.float32)
    signs = _signs_like(y)
    added = None if residual is None else _rows(residual)
    _ops.direct_(y, signs, rows, weights, bias, added, *geometry, True)
    return _images(y), signs


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
    weights: Tensor,  # as direct_weights gives them for a gradient
    residual: Tensor | None,
    mask: Tensor | None,
    channels: int,
    size: tuple[int, int],
    geometry: Geometry,
) -> Tensor:  # (N, channels, *size)
    """The convolution's gradient by its input, + residual, and zero where the mask has no bit."""
    rows = _rows(grad)
    y = pool.empty((len(rows), *size, channels), torch.float32)
    added = None if residual is None else _rows(residual)
    _ops.fold_(y, rows, weights, added, mask, *geometry)
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
    grad: Tensor, taken: Tensor, residual: Tensor | None, mask: Tensor | None,
    size: tuple[int, int], kernel: Pair, stride: Pair, padding: Pair,
) -> Tensor:  # fmt: skip
    """The gradient of max_pool by its input (N, C, *size), + residual, masked."""
    rows = _rows(grad)
    y = pool.empty((len(rows), *size, rows.shape[3]), torch.float32)
    added = None if residual is None else _rows(residual)
    _ops.max_pool_gradient_(y, rows, taken, added, mask, kernel, stride, padding)
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


def rectify(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """(relu(x + residual), its signs)."""
    rows = _rows(x)
    y = pool.empty(tuple(rows.shape), torch.float32)
    signs = _signs_like(y)
    _ops.relu_(y, signs, rows, None if residual is None else _rows(residual), None)
    return _like(x, y), signs


def masked(grad: Tensor, residual: Tensor | None, mask: Tensor) -> Tensor:
    """grad + residual, and zero where the mask has no bit: a ReLU's gradient."""
    rows = _rows(grad)
    y = pool.empty(tuple(rows.shape), torch.float32)
    _ops.relu_(y, None, rows, None if residual is None else _rows(residual), mask)
    return _like(grad, y)


def norm_rectify(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(relu(x * scale + shift), its signs), scale and shift a channel."""
    rows = _rows(x)
    y = pool.empty(tuple(rows.shape), torch.float32)
    signs = _signs_like(y)
    _ops.affine_relu_(y, signs, rows, scale, shift, None, None)
    return _images(y), signs


def norm_masked(grad: Tensor, scale: Tensor, residual: Tensor | None, mask: Tensor) -> Tensor:
    """The gradient of norm_rectify by x, + residual."""
    rows = _rows(grad)
    y = pool.empty(tuple(rows.shape), torch.float32)
    added = None if residual is None else _rows(residual)
    _ops.affine_relu_(y, None, rows, scale, None, added, mask)
    return _images(y)


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
