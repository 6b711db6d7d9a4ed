"""Convolutions of any kernel, stride, padding and dilation: the weights' order, and a reference.

Forward (csrc/cpu/direct.cpp) an output sees its taps' channels, one tap after the other; the
weights stand in parts of DEPTH such numbers. For the gradient (csrc/cpu/fold.cpp) a pixel of the
output's gradient is multiplied to taps * channels numbers; the weights stand in parts of CHANNELS
channels. Each part is (panels, numbers, PANEL), or in bfloat16 (panels, pairs, PANEL, 2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from fastadv.engine.reference import PANEL, panels
from fastadv.engine.reference_activations import finished, times_slopes

DEPTH, CHANNELS = 256, 64  # as kDirectDepth and kFoldChannels in csrc/cpu/engine_args.h
Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, Pair]  # kernel, stride, padding, dilation


def direct_weights(
    weight: Tensor,  # (K, C, *kernel)
    scale: Tensor | None,  # (K,)
    gradient: bool,
    bfloat16: bool,
) -> Tensor:  # one row, as the kernel reads it
    """scale * weight in the order of direct.cpp, or, for the gradient, of fold.cpp."""
    w = weight.detach() if scale is None else weight.detach() * scale[:, None, None, None]
    if gradient:  # rows (taps, channels), depth K
        parts = [part.permute(2, 3, 1, 0).flatten(0, 2) for part in torch.split(w, CHANNELS, 1)]
    else:  # rows K, depth (taps, channels)
        parts = list(torch.split(w.permute(0, 2, 3, 1).flatten(1), DEPTH, 1))
    packed = torch.cat([_pack(part, 2 if bfloat16 else 1) for part in parts])
    return packed.bfloat16() if bfloat16 else packed


def _pack(rows: Tensor, step: int) -> Tensor:  # (rows, depth) to one row
    rows = F.pad(rows, (0, -rows.shape[1] % step, 0, -len(rows) % PANEL))
    return rows.reshape(-1, PANEL, rows.shape[1] // step, step).transpose(1, 2).flatten()


def unpack(
    packed: Tensor, outputs: int, channels: int, gradient: bool, kernel: Pair
) -> Tensor:  # (outputs, channels, *kernel)
    """What direct_weights packed, of a convolution from `channels` to `outputs`."""
    taps = kernel[0] * kernel[1]
    if gradient:
        sizes = [
            (taps * min(CHANNELS, channels - c), outputs) for c in range(0, channels, CHANNELS)
        ]
    else:
        depth = taps * channels
        sizes = [(outputs, min(DEPTH, depth - d)) for d in range(0, depth, DEPTH)]
    parts, at, step = [], 0, 2 if packed.dtype == torch.bfloat16 else 1
    for rows, depth in sizes:
        steps = -(-depth // step)
        part = packed[at : at + panels(rows) * PANEL * steps * step].float()
        at += part.numel()
        part = part.view(-1, steps, PANEL, step).transpose(1, 2).reshape(-1, steps * step)
        parts.append(part[:rows, :depth])
    if gradient:
        split = [part.view(*kernel, -1, outputs) for part in parts]
        return torch.cat(split, 2).permute(3, 2, 0, 1)
    return torch.cat(parts, 1).view(outputs, *kernel, channels).permute(0, 3, 1, 2)


def direct_(
    y: Tensor, kept: Tensor | None, x: Tensor, weights: Tensor, bias: Tensor | None,
    residual: Tensor | None, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], activation: int, numbers: list[float],
) -> None:  # fmt: skip
    """y <- activation(conv(x) + bias + residual), kept <- its slopes."""
    w = unpack(weights, y.shape[3], x.shape[3], False, (kernel[0], kernel[1]))
    v = F.conv2d(_images(x, weights), w, None, stride, padding, dilation).permute(0, 2, 3, 1)
    v = v if bias is None else v + bias
    v = v if residual is None else v + residual
    y.copy_(finished(v, kept, activation, numbers))


def fold_(
    y: Tensor, x: Tensor, weights: Tensor, residual: Tensor | None, slopes: Tensor | None,
    leak: float, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int],
) -> None:  # fmt: skip
    """y <- the gradient by its input of a convolution whose output's is x, + residual, times
    slopes."""
    w = unpack(weights, x.shape[3], y.shape[3], True, (kernel[0], kernel[1]))
    shape = (len(y), y.shape[3], *y.shape[1:3])
    v = conv2d_input(shape, w, _images(x, weights), stride, padding, dilation)  # type: ignore[no-untyped-call]
    v = v.permute(0, 2, 3, 1)
    v = v if residual is None else v + residual
    y.copy_(times_slopes(v, slopes, leak))


def depthwise_weights(weight: Tensor, scale: Tensor | None) -> Tensor:  # (taps, C)
    """scale * weight, of a convolution (C, 1, *kernel) of each channel by itself, and of its
    gradient."""
    w = weight.detach().flatten(1)
    return (w if scale is None else w * scale[:, None]).t().contiguous()


def depthwise_(
    y: Tensor, kept: Tensor | None, x: Tensor, weights: Tensor, bias: Tensor | None,
    residual: Tensor | None, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], activation: int, numbers: list[float],
) -> None:  # fmt: skip
    """direct_, of each channel by itself."""
    w, place = _of_channels(weights, kernel), (stride, padding, dilation)
    v = F.conv2d(x.permute(0, 3, 1, 2), w, bias, *place, len(w)).permute(0, 2, 3, 1)
    v = v if residual is None else v + residual
    y.copy_(finished(v, kept, activation, numbers))


def depthwise_gradient_(
    y: Tensor, x: Tensor, weights: Tensor, residual: Tensor | None, slopes: Tensor | None,
    leak: float, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int],
) -> None:  # fmt: skip
    """fold_, of each channel by itself."""
    w, shape = _of_channels(weights, kernel), (len(y), y.shape[3], *y.shape[1:3])
    place = (stride, padding, dilation, len(w))
    v = conv2d_input(shape, w, x.permute(0, 3, 1, 2), *place).permute(0, 2, 3, 1)  # type: ignore[no-untyped-call]
    y.copy_(times_slopes(v if residual is None else v + residual, slopes, leak))


def _of_channels(weights: Tensor, kernel: list[int]) -> Tensor:
    return weights.t().reshape(-1, 1, *kernel)


def _images(x: Tensor, weights: Tensor) -> Tensor:
    images = x.permute(0, 3, 1, 2)
    return images.bfloat16().float() if weights.dtype == torch.bfloat16 else images
