"""Convolutions of any kernel, stride, padding and dilation: the weights' order, and a reference.

An output sees its taps' channels, one tap after the other; a gradient's outputs fall into phases
that see different taps (csrc/cpu/direct_geometry.h). The weights stand phase by phase, in parts of
DEPTH such numbers, each (panels, numbers, PANEL), or in bfloat16 (panels, pairs, PANEL, 2).
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from fastadv.engine.reference import PANEL, panels, relu_, unpack_signs

DEPTH = 256  # as kDirectDepth in csrc/cpu/kernels.h
Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, Pair]  # kernel, stride, padding, dilation


def phases(geometry: Geometry, gradient: bool) -> list[list[Pair]]:
    """The taps that each phase's outputs see, in the order of the pixels under them."""
    (kernel, stride, padding, dilation), result = geometry, []
    if not gradient:
        return [list(product(range(kernel[0]), range(kernel[1])))]

    def seen(axis: int, own: int) -> list[int]:
        taps = range(kernel[axis] - 1, -1, -1)
        return [k for k in taps if (own + padding[axis] - k * dilation[axis]) % stride[axis] == 0]

    for row, column in product(range(stride[0]), range(stride[1])):
        result.append(list(product(seen(0, row), seen(1, column))))
    return result


def direct_weights(
    weight: Tensor,  # (K, C, *kernel)
    scale: Tensor | None,  # (K,)
    gradient: bool,
    geometry: Geometry,
    bfloat16: bool,
) -> Tensor:  # one row, as the kernel reads it
    """scale * weight in the kernel's order; for the gradient K and C are exchanged."""
    w = weight.detach() if scale is None else weight.detach() * scale[:, None, None, None]
    w = w.transpose(0, 1) if gradient else w
    w = F.pad(w, (0, 0, 0, 0, 0, 0, 0, -len(w) % PANEL))
    done = []
    for taps in phases(geometry, gradient):
        if not taps:
            continue
        seen = torch.stack([w[:, :, i, j] for i, j in taps], 1).flatten(1)  # (outputs, numbers)
        for part in torch.split(seen, DEPTH, 1):
            rows = F.pad(part, (0, part.shape[1] % 2 if bfloat16 else 0))
            pairs = rows.reshape(panels(len(w)), PANEL, -1, 2 if bfloat16 else 1)
            done.append(pairs.transpose(1, 2).flatten())
    packed = torch.cat(done)
    return packed.bfloat16() if bfloat16 else packed


def unpack(
    packed: Tensor, outputs: int, channels: int, gradient: bool, geometry: Geometry
) -> Tensor:  # (outputs, channels, *kernel)
    """What direct_weights packed, with the outputs that the kernel has."""
    half, wide = packed.dtype == torch.bfloat16, panels(outputs)
    w = packed.new_zeros((outputs, channels, *geometry[0]), dtype=torch.float32)
    at, step = 0, 2 if half else 1
    for taps in phases(geometry, gradient):
        rows = []
        left = len(taps) * channels
        for begin in range(0, left, DEPTH):
            numbers = -(-min(DEPTH, left - begin) // step) * step  # padded to whole steps
            part = packed[at : at + wide * PANEL * numbers].view(wide, -1, PANEL, step)
            rows.append(part.transpose(1, 2).reshape(wide * PANEL, -1)[:outputs].float())
            at += part.numel()
        if taps:
            seen = torch.cat(rows, 1)[:, :left].view(outputs, len(taps), channels)
            for k, (i, j) in enumerate(taps):
                w[:, :, i, j] = seen[:, k]
    return w


def direct_(
    y: Tensor, signs: Tensor | None, x: Tensor, weights: Tensor, bias: Tensor | None,
    residual: Tensor | None, mask: Tensor | None, kernel: list[int], stride: list[int],
    padding: list[int], dilation: list[int], gradient: bool, relu: bool,
) -> None:  # fmt: skip
    """y <- relu(conv(x) + bias + residual), then zero where `mask` has no bit."""
    pairs = [(a[0], a[1]) for a in (kernel, stride, padding, dilation)]
    outputs, channels = y.shape[3], x.shape[3]
    w = unpack(weights, outputs, channels, gradient, (pairs[0], pairs[1], pairs[2], pairs[3]))
    images = x.permute(0, 3, 1, 2)
    images = images.bfloat16().float() if weights.dtype == torch.bfloat16 else images
    if gradient:
        shape = (len(y), outputs, *y.shape[1:3])
        v = conv2d_input(shape, w.transpose(0, 1), images, stride, padding, dilation)  # type: ignore[no-untyped-call]
    else:
        v = F.conv2d(images, w, None, stride, padding, dilation)
    v = v.permute(0, 2, 3, 1)
    v = v if bias is None else v + bias
    v = v if residual is None else v + residual
    if relu:
        relu_(v := v.contiguous(), signs, v, None, None)
    y.copy_(v if mask is None else torch.where(unpack_signs(mask, outputs), v, 0))
