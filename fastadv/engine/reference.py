"""The engine's ops in a few lines of torch: their definition, and their oracle.

Images are channels last here, (N, H, W, C), and contiguous so. Signs are bits, one a
number: (N, H, W, bytes) of uint8, channel k in bit k % 8 of byte k // 8, two bytes a panel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16  # outputs whose weights stand side by side, as in csrc/cpu/engine_args.h


def panels(outputs: int) -> int:
    return -(-outputs // PANEL)


def sign_bytes(channels: int) -> int:
    return panels(channels) * PANEL // 8


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


def watch_(met: Tensor, x: Tensor, infinite: bool) -> None:
    """met (1,) of bool <- True where any number of x is NaN or, if asked, infinite."""
    met.logical_or_((~x.isfinite() if infinite else x.isnan()).any())


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
