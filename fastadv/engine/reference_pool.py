"""Max pooling that keeps a byte an output for its gradient: which tap of the window it was; and the
mean over all pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.engine.reference import PANEL, panels
from fastadv.engine.reference_activations import times_slopes

Pair = tuple[int, int]


def room(channels: int) -> int:
    """Bytes a pixel: whole panels."""
    return panels(channels) * PANEL


def max_pool_(
    y: Tensor, taken: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> None:
    """y (N, H, W, C) <- the largest pixel of each window; taken <- which tap it was."""
    under = _windows(x, kernel, stride, padding, y.shape[1:3], -torch.inf)  # (taps, *y.shape)
    inside = _windows(torch.ones_like(x), kernel, stride, padding, y.shape[1:3], 0.0) > 0
    best = torch.full_like(under[0], -torch.inf)
    tap = inside.int().argmax(0)  # the first inside, where all are -inf
    for k, v in enumerate(under):
        better = inside[k] & ((v > best) | v.isnan())
        best, tap = torch.where(better, v, best), torch.where(better, k, tap)
    y.copy_(best)
    taken[..., : y.shape[3]] = tap


def max_pool_gradient_(
    y: Tensor, x: Tensor, taken: Tensor, residual: Tensor | None, slopes: Tensor | None,
    leak: float, kernel: list[int], stride: list[int], padding: list[int],
) -> None:  # fmt: skip
    """y <- the gradient by the input of max_pool_, whose output's is x, + residual, times
    slopes."""
    n, rows, columns, channels = x.shape
    high, wide = (
        (size - 1) * step + k for size, step, k in zip((rows, columns), stride, kernel, strict=True)
    )
    images = x.permute(0, 3, 1, 2).flatten(2)
    tap = taken[..., :channels].permute(0, 3, 1, 2).long()
    row = torch.arange(rows, device=x.device)[:, None] * stride[0] + tap // kernel[1]
    column = torch.arange(columns, device=x.device) * stride[1] + tap % kernel[1]
    high, wide = max(high, padding[0] + y.shape[1]), max(wide, padding[1] + y.shape[2])
    v = x.new_zeros(n, channels, high * wide)
    v.scatter_add_(2, (row * wide + column).flatten(2), images)
    v = v.view(n, channels, high, wide)[..., padding[0] :, padding[1] :]
    v = v[..., : y.shape[1], : y.shape[2]].permute(0, 2, 3, 1)
    v = v if residual is None else v + residual
    y.copy_(times_slopes(v, slopes, leak))


def mean_(y: Tensor, x: Tensor, gradient: bool) -> None:
    """y (N, C) <- the mean over x (N, pixels, C); or y (N, pixels, C) <- x (N, C) / pixels."""
    y.copy_((x / y.shape[1])[:, None].expand_as(y) if gradient else x.mean(1))


def _windows(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], size: torch.Size,
    beyond: float,
) -> Tensor:  # fmt: skip
    """What each tap sees: (taps, N, *size, C)."""
    images = x.permute(0, 3, 1, 2)
    reach = [(n - 1) * s + k for n, s, k in zip(size, stride, kernel, strict=True)]
    more = [r - p - e for r, p, e in zip(reach, padding, x.shape[1:3], strict=True)]
    images = F.pad(images, (padding[1], max(0, more[1]), padding[0], max(0, more[0])), value=beyond)
    taps = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            part = images[:, :, i :: stride[0], j :: stride[1]]
            taps.append(part[:, :, : size[0], : size[1]].permute(0, 2, 3, 1))
    return torch.stack(taps)
