"""3x3 convolutions of images of at most 2x2 pixels: one product of all their pixels.

There most of a kernel's 9 taps meet the padding: of 36 products a channel of a 2x2 image 16 are not
with zeros. So such an image is taken for one pixel of all its channels, the same memory, and the
convolution for one of 1x1, with its weights spread over pairs of an output's and an input's pixel.
With 512 channels, 32 samples, it is twice as fast as the direct kernel, whose products are as many
as its taps, and 2.7 times as Winograd's, which fills a quarter of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.engine import calls
from fastadv.engine.reference import PANEL
from fastadv.engine.reference_activations import RELU, Activation
from fastadv.engine.reference_direct import DEPTH, Geometry, Pair

_WHOLE: Geometry = ((1, 1), (1, 1), (0, 0), (1, 1))  # of the one pixel
_SPREAD: Geometry = ((3, 3), (1, 1), (1, 1), (1, 1))


def spreads(geometry: Geometry, size: tuple[object, ...], *channels: int) -> bool:
    """Whether a convolution of images of this size is such a product, and the kernels' panels of
    channels stand where those of all pixels do."""
    small = all(isinstance(pixels, int) and pixels <= 2 for pixels in size)
    return geometry == _SPREAD and small and all(c % PANEL == 0 for c in channels)


def spread_weights(
    weight: Tensor,  # (K, C, 3, 3)
    scale: Tensor | None,  # (K,)
    gradient: bool,
    bfloat16: bool,
    size: Pair,
) -> Tensor:  # one row, as direct_weights of the 1x1 convolution from all inputs to all outputs
    """scale * weight between each pixel of the output and each of the input, or for the gradient
    the other way round."""
    w = weight.detach() if scale is None else weight.detach() * scale[:, None, None, None]
    w = w.permute(2, 3, 1, 0) if gradient else w.permute(2, 3, 0, 1)  # taps, rows, depth
    rows, depth = w.shape[2:]
    taps = w.reshape(9, rows // PANEL, PANEL, depth).transpose(2, 3).contiguous()
    pixels = range(_area(size))
    tap = torch.tensor([[_tap(o, i, size) for i in pixels] for o in pixels], device=weight.device)
    spread = taps[tap.t() if gradient else tap].transpose(1, 2)  # pixels, panels, pixels, depth
    panels = spread.reshape(len(tap) * rows // PANEL, len(tap) * depth, PANEL)
    if bfloat16:
        panels = panels.bfloat16().view(len(panels), -1, 2, PANEL).transpose(2, 3)
    if gradient:
        return panels.flatten()
    parts = torch.split(panels, DEPTH // 2 if bfloat16 else DEPTH, 1)
    return torch.cat([part.flatten() for part in parts])


def _area(size: Pair) -> int:
    return size[0] * size[1]


def _tap(output: int, pixel: int, size: Pair) -> int:
    """Through which tap an output sees a pixel of the input."""
    (i, j), (row, column) = divmod(pixel, size[1]), divmod(output, size[1])
    return 3 * (i - row + 1) + j - column + 1


def spread_bias(bias: Tensor, pixels: int) -> Tensor:
    """The bias of each pixel's outputs."""
    return bias.repeat(pixels)


def convolve(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: Pair,
) -> Tensor:  # fmt: skip
    """As calls.convolve_directly, of weights and bias that are spread."""
    all_of = outputs * _area(size)
    y = calls.convolve_directly(
        _whole(x), weights, bias, _whole_or_none(residual), all_of, (1, 1), _WHOLE
    )
    return _apart(y, size)


def convolve_activated(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int,
    size: Pair, activation: Activation = RELU, keeps: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As calls.convolve_activated_directly."""
    more = (outputs * _area(size), (1, 1), _WHOLE, activation, keeps)
    y, kept = calls.convolve_activated_directly(
        _whole(x), weights, bias, _whole_or_none(residual), *more
    )
    return _apart(y, size), None if kept is None else kept.view(len(kept), *size, -1)


def gradient(
    grad: Tensor, weights: Tensor, residual: Tensor | None, slopes: Tensor | None, channels: int,
    size: Pair, leak: float = 0.0,
) -> Tensor:  # fmt: skip
    """As calls.fold."""
    given = None if slopes is None else slopes.view(len(slopes), 1, 1, -1)
    added, more = _whole_or_none(residual), (channels * _area(size), (1, 1), _WHOLE, leak)
    return _apart(calls.fold(_whole(grad), weights, added, given, *more), size)


def _whole(x: Tensor) -> Tensor:
    """Images as ones of a single pixel."""
    return x.permute(0, 2, 3, 1).contiguous().view(len(x), 1, 1, -1).permute(0, 3, 1, 2)


def _whole_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _whole(x)


def _apart(y: Tensor, size: Pair) -> Tensor:
    """And back."""
    return y.permute(0, 2, 3, 1).view(len(y), *size, -1).permute(0, 3, 1, 2)
