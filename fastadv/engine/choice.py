"""Which kernel serves a convolution, or its gradient, and why.

Measured on one thread of an EPYC with AVX-512, against ATen and a ReLU after it: Winograd's
F(4x4,3x3) is 2.5 to 3.5 times as fast, and with a stride of 2, from 32 channels on, 1.3 times. With
fewer than 8 channels the direct kernel is 2.5 to 5 times as fast, and its gradient (fold) 3.5 to 6
times. With other strides both are 1 to 1.3 times as fast, in bfloat16 1.6 to 2 times; 1x1 as fast,
but for the passes that they take in. Of 5x5 windows on at most 32 channels the gradient is 1.6
times as fast. All else is slower.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fastadv.engine.graph import CONVOLUTION_BACKWARD, is_bias, is_channels_last, is_weight, value
from fastadv.engine.reference_direct import Geometry

WINOGRAD, DIRECT, FOLD = "winograd", "direct", "fold"
_TAPS = 64  # at most, in the kernels of ours
_FEW = 32  # channels, of which ATen's kernels for larger windows make no more than ours


def choose(conv: fx.Node, native: bool, bfloat16: bool) -> tuple[str | None, str]:
    """The kernel that serves a convolution or its gradient, and why; None: ATen does."""
    if not native:
        return None, "no compiled kernels"
    if why := _no_kernel_of_ours(conv):
        return None, why
    why_not_winograd = _why_not_winograd(conv)
    if why_not_winograd is None:
        return WINOGRAD, "fewest products"
    if _why_not_direct(conv, bfloat16) is None:
        return FOLD if is_gradient(conv) else DIRECT, why_not_winograd
    return None, why_not_winograd


def is_gradient(conv: fx.Node) -> bool:
    return conv.target is CONVOLUTION_BACKWARD


def weight_of(conv: fx.Node) -> tuple[Any, Any]:
    """The convolution's own weight, and what a folded norm scales it by."""
    own: tuple[Any, Any] = (conv.args[2 if is_gradient(conv) else 1], None)
    folded: tuple[Any, Any] = conv.meta.get("norm", own)
    return folded


def geometry_of(conv: fx.Node) -> Geometry:
    given: Any = conv.args[4 if is_gradient(conv) else 3 :][:3]
    sizes = value(weight_of(conv)[0]).shape[2:]
    kernel, stride, padding, dilation = ((int(p[0]), int(p[1])) for p in (sizes, *given))
    return kernel, stride, padding, dilation


def _images(conv: fx.Node) -> tuple[Any, Any]:
    """What the kernel reads, and what it writes: for a gradient the output's, and the input's."""
    return value(conv.args[0]), value(conv)[0] if is_gradient(conv) else value(conv)


def _no_kernel_of_ours(conv: fx.Node) -> str | None:
    backward = is_gradient(conv)
    weight = weight_of(conv)[0]
    more: Any = conv.args[7 if backward else 6 :]
    transposed, _, groups = more[:3]
    if value(weight) is None or value(weight).dim() != 4:
        return "is not of images"
    if transposed or groups != 1:
        return "is transposed" if transposed else f"has {groups} groups"
    if not is_weight(weight) or not (backward or "norm" in conv.meta or is_weight(conv.args[2])):
        return "its weights are computed"
    bias = None if backward or "norm" in conv.meta else value(conv.args[2])
    if bias is not None and not is_bias(bias, value(weight).shape[0]):
        return "its bias is not one contiguous number an output"
    if not all(is_channels_last(image) for image in _images(conv)):
        return "its images are not float32 and channels last"
    return None


def _why_not_winograd(conv: fx.Node) -> str | None:
    kernel, stride, padding, dilation = geometry_of(conv)
    x, y = _images(conv)
    if kernel != (3, 3):
        return "is not 3x3"
    if stride not in ((1, 1), (2, 2)) or dilation != (1, 1):
        return f"stride {list(stride)}, dilation {list(dilation)}"
    if padding not in ((0, 0), (1, 1), (2, 2)) or (stride == (2, 2) and padding != (1, 1)):
        return f"padding {list(padding)}, stride {list(stride)}"
    strided = stride == (2, 2)
    few = min(x.shape[1], y.shape[1]) if strided else (y if is_gradient(conv) else x).shape[1]
    if few < (32 if strided else 8):
        return f"{few} channels are too few for a transform"
    pixels = x if strided and is_gradient(conv) else y
    return _waste(pixels, x.shape[1] * y.shape[1], 14 if strided else 6)


def _waste(y: Any, products: int, least: int) -> str | None:
    """Tiles of 4x4 on few pixels multiply zeros: 36 products a tile, or 81 with stride 2, against
    9 a pixel.

    And transformed weights are four times the weights: with few tiles to share them, reading them
    from memory at a core's 10 GB/s takes longer than the products that they save.
    """
    n, _, rows, columns = y.shape
    tiles = -(-rows // 4) * -(-columns // 4)
    if isinstance(n, int) and n * tiles < 12 and products >= 64 * 64:
        return f"{n * tiles} tiles are too few to read larger weights for"
    return f"{rows}x{columns} pixels leave tiles empty" if rows * columns < least * tiles else None


def _why_not_direct(conv: fx.Node, bfloat16: bool) -> str | None:
    kernel, stride, _, _ = geometry_of(conv)
    x, y = _images(conv)
    taps, channels = kernel[0] * kernel[1], (y if is_gradient(conv) else x).shape[1]
    if taps > _TAPS:
        return "its kernel is too large"
    gains = bfloat16 or stride != (1, 1) or taps == 1 or channels < 8
    return None if gains or (taps > 9 and channels <= _FEW) else "ATen is as fast"
