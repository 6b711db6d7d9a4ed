"""The engine's ops in a few lines of torch: their definition, and their oracle.

Images are channels last here, (N, H, W, C), and contiguous so. A ReLU's signs are bits, one a
number: (N, H, W, bytes) of uint8, channel k in bit k % 8 of byte k // 8, two bytes a panel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16  # outputs whose weights stand side by side, as in csrc/cpu/kernels.h

# Lavin and Gray, 1509.09308, section 4.3: F(4x4,3x3) is A^T ((G g G^T) * (B^T d B)) A.
_G = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # / 24
_BT = [
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
]  # fmt: skip
_AT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


@lru_cache(maxsize=4)
def _taps(gradient: bool) -> Tensor:  # (36, 9)
    with torch.inference_mode(False):
        g = torch.tensor(_G, dtype=torch.float64) / torch.tensor([24, 24, 24]).double()
        g[0] = torch.tensor([0.25, 0, 0])
        taps = torch.einsum("ai,bj->abij", g, g).reshape(36, 9)
        return (taps.flip(1) if gradient else taps).contiguous()


def panels(outputs: int) -> int:
    return -(-outputs // PANEL)


def sign_bytes(channels: int) -> int:
    return panels(channels) * PANEL // 8


def transformed_shape(
    outputs: int, channels: int, bfloat16: bool
) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the dtype of transformed weights."""
    if bfloat16:
        return (36, panels(outputs), -(-channels // 2), PANEL, 2), torch.bfloat16
    return (36, panels(outputs), channels, PANEL), torch.float32


def winograd_weights(
    weight: Tensor,  # (K, C, 3, 3)
    scale: Tensor | None,  # (K,)
    gradient: bool,
    bfloat16: bool = False,
) -> Tensor:  # as transformed_shape says, or with C and K exchanged
    """G (scale * weight) G^T as the kernel reads it: of the convolution, or of its gradient.

    One GEMM: the 36 combinations of the 9 taps; the gradient's taps are turned round. In bfloat16
    pairs of channels stand together.
    """
    w = weight.detach().flatten(2)  # (K, C, 9)
    if scale is not None:
        w = w * scale[:, None, None]
    if gradient:
        w = w.transpose(0, 1)
    w = F.pad(w, (0, 0, 0, w.shape[1] % 2 if bfloat16 else 0, 0, -len(w) % PANEL))
    taps = w.reshape(-1, PANEL, w.shape[1], 9).permute(3, 0, 2, 1).contiguous()
    packed = (_taps(gradient).to(taps.dtype) @ taps.view(9, -1)).view(36, *taps.shape[1:])
    if not bfloat16:
        return packed
    paired = packed.view(36, len(packed[0]), -1, 2, PANEL)
    return paired.transpose(3, 4).bfloat16().contiguous()


def winograd_weights_(
    weights: Tensor, weight: Tensor, scale: Tensor | None, gradient: bool
) -> None:
    """weights <- winograd_weights of their dtype."""
    weights.copy_(winograd_weights(weight, scale, gradient, weights.dtype == torch.bfloat16))


def unpack_signs(signs: Tensor, channels: int) -> Tensor:
    """(N, H, W, bytes) of uint8 to (N, H, W, channels) of bool."""
    bits = signs[..., None] >> torch.arange(8, dtype=torch.uint8, device=signs.device)
    return (bits & 1).flatten(-2)[..., :channels].bool()


def pack_signs(positive: Tensor) -> Tensor:
    """(N, H, W, channels) of bool to (N, H, W, bytes) of uint8."""
    extra = -positive.shape[-1] % PANEL
    bits = F.pad(positive, (0, extra)).view(*positive.shape[:-1], -1, 8).long()
    packed: Tensor = (bits << torch.arange(8, device=positive.device)).sum(-1)
    return packed.to(torch.uint8)


def relu_(
    y: Tensor, signs: Tensor | None, x: Tensor, residual: Tensor | None, mask: Tensor | None
) -> None:
    """y <- relu(x + residual), signs <- !(x + residual <= 0); or y <- x where mask has a bit."""
    v = x if residual is None else x + residual
    positive = ~(v <= 0) if mask is None else unpack_signs(mask, x.shape[-1])
    if signs is not None:
        signs.copy_(pack_signs(positive))
    y.copy_(torch.where(positive, v, 0))


def affine_relu_(
    y: Tensor, signs: Tensor | None, x: Tensor, scale: Tensor, shift: Tensor | None,
    residual: Tensor | None, mask: Tensor | None,
) -> None:  # fmt: skip
    """y <- relu(x * scale + shift), signs <- its signs; or y <- x * scale where mask has a bit, and
    + residual."""
    if mask is None:
        relu_(y, signs, x * scale + (0 if shift is None else shift), None, None)
    else:
        v = torch.where(unpack_signs(mask, x.shape[-1]), x * scale, 0)
        y.copy_(v if residual is None else v + residual)


def winograd_(
    y: Tensor, signs: Tensor | None, x: Tensor, weights: Tensor, bias: Tensor | None,
    residual: Tensor | None, mask: Tensor | None, padding: int, relu: bool,
) -> None:  # fmt: skip
    """y <- relu(conv3x3(x) + bias + residual), then zero where `mask` has no bit."""
    (_, height, width, _), (n, rows, columns, outputs) = x.shape, y.shape
    down, across = -(-rows // 4), -(-columns // 4)
    below, right = (4 * down + 2 - height - padding, 4 * across + 2 - width - padding)
    d = F.pad(x, (0, 0, padding, right, padding, below)).unfold(1, 6, 4).unfold(2, 6, 4)
    at, bt = (x.new_tensor(m) for m in (_AT, _BT))
    t, u = torch.einsum("ai,nxycij,bj->nxyabc", bt, d, bt), weights
    if weights.dtype == torch.bfloat16:  # the products' factors are rounded, the sums are not
        t, u = t.bfloat16().float(), weights.float().transpose(3, 4).flatten(2, 3)
    u = u.transpose(2, 3).reshape(6, 6, -1, u.shape[2])[:, :, :outputs, : x.shape[3]]
    m = torch.einsum("nxyabc,abkc->nxyabk", t, u)
    v = torch.einsum("ia,nxyabk,jb->nxiyjk", at, m, at).reshape(n, 4 * down, 4 * across, -1)
    v = v[:, :rows, :columns]
    v = v if bias is None else v + bias
    v = v if residual is None else v + residual
    if relu:
        relu_(v, signs, v, None, None)
    y.copy_(v if mask is None else torch.where(unpack_signs(mask, outputs), v, 0))


def _logical(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def fingerprint(x: Tensor) -> int:
    """A hash of the bytes of x: see csrc/cpu/fingerprint.cpp, which it equals."""
    data = x.contiguous().view(-1).view(torch.uint8)
    data = F.pad(data, (0, 8 - len(data) % 8)).view(torch.int64)  # the last, broken word, too
    words, last = data[:-1], int(data[-1])
    steps = F.pad(words, (0, -len(words) % 8)).view(-1, 8)
    lane = torch.arange(1, 16, 2) * _signed(0x9E3779B97F4A7C15)
    place = torch.arange(len(steps)) % 1024 * _signed(0xC2B2AE3D27D4EB4F)
    keyed = steps ^ (lane + place[:, None])
    turned = (steps << 32) | _logical(steps, 32)
    parts = (keyed & 0xFFFFFFFF) * _logical(keyed, 32) + turned
    sums = [part.sum(0) for part in torch.split(parts, 1024) if len(part)]
    totals = torch.zeros(len(sums), dtype=torch.int64)
    for lane_sums in torch.stack(sums).unbind(1) if sums else ():
        totals = (totals ^ lane_sums) * _signed(0xD6E8FEB86659FD93)
        totals = totals ^ _logical(totals, 32)
    hashed, all_ones = x.numel() * x.element_size(), (1 << 64) - 1
    for total in [*totals.tolist(), last]:
        mixed = ((hashed ^ (total & all_ones)) * 0x9E3779B97F4A7C15) & all_ones
        hashed = mixed ^ (hashed >> 29)
    return _signed(hashed)
