"""The engine's activations in plain torch: their definition, and their oracle.

An activation is (number, *numbers): its place in NAMES, and what torch calls it with, as
csrc/cpu/engine_args.h has them. What is kept of one for its gradient are its slopes, like y, or,
where they are two, bits: whether a number has the upper one, 1. The other is 0, or the leak.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.engine.reference import pack_signs, unpack_signs

NAMES = (
    "none", "relu", "leaky_relu", "gelu", "gelu (tanh)", "tanh", "sigmoid", "silu", "elu",
    "softplus", "mish", "hardsigmoid", "hardswish", "hardtanh",
)  # fmt: skip
TWO_SLOPES = ("relu", "leaky_relu", "hardtanh")
_ATEN = torch.ops.aten

Activation = tuple[float, ...]
NONE: Activation = (NAMES.index("none"),)
RELU: Activation = (NAMES.index("relu"),)


def has_two_slopes(activation: int) -> bool:
    return NAMES[activation] in TWO_SLOPES


def leak_of(activation: int, numbers: Sequence[float]) -> float:
    """The lower of two slopes."""
    return numbers[0] if NAMES[activation] == "leaky_relu" else 0.0


def activate(z: Tensor, activation: int, *numbers: float) -> tuple[Tensor, Tensor]:
    """(activation(z), its slope there), with torch's values where the slope jumps."""
    one, name = torch.ones_like(z), NAMES[activation]
    if name == "relu":
        return z.relu(), torch.where(z <= 0, 0, one)
    if name == "leaky_relu":
        return F.leaky_relu(z, numbers[0]), torch.where(z > 0, one, numbers[0])
    if name == "hardtanh":
        least, most = numbers
        return z.clamp(least, most), torch.where((z <= least) | (z >= most), 0, one)
    if name.startswith("gelu"):
        kind = "tanh" if name.endswith("(tanh)") else "none"
        return F.gelu(z, approximate=kind), _ATEN.gelu_backward(one, z, approximate=kind)
    if name == "tanh":
        return z.tanh(), 1 - z.tanh() ** 2
    if name == "sigmoid":
        return z.sigmoid(), z.sigmoid() * (1 - z.sigmoid())
    if name == "elu":
        return _ATEN.elu(z, *numbers), _ATEN.elu_backward(one, *numbers, False, z)
    if name == "softplus":
        return _ATEN.softplus(z, *numbers), _ATEN.softplus_backward(one, z, *numbers)
    if name == "none":
        return z, one
    value, slope = getattr(_ATEN, name)(z), getattr(_ATEN, f"{name}_backward")(one, z)
    return value, slope


def finished(
    v: Tensor, kept: Tensor | None, activation: int, numbers: list[float]
) -> Tensor:  # (N, H, W, C), as v
    """activation(v); kept <- its slopes, or the bits that say them."""
    y, slopes = activate(v, activation, *numbers)
    if kept is not None:
        bits = slopes != leak_of(activation, numbers)
        kept.copy_(pack_signs(bits) if has_two_slopes(activation) else slopes)
    return y


def times_slopes(v: Tensor, slopes: Tensor | None, leak: float) -> Tensor:
    """v (N, H, W, C) times what finished() kept; leak: the slope where there is no bit."""
    if slopes is None:
        return v
    if slopes.dtype != torch.uint8:
        return torch.where(slopes == 0, 0, v * slopes)
    return torch.where(unpack_signs(slopes, v.shape[-1]), v, v * leak if leak else 0)


def activate_(
    y: Tensor, kept: Tensor | None, x: Tensor, other: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, activation: int, numbers: list[float],
) -> None:  # fmt: skip
    """y <- activation((x + other) * scale + shift), kept <- its slopes."""
    v = x if other is None else x + other
    v = v if scale is None or shift is None else v * scale + shift
    y.copy_(finished(v, kept, activation, numbers))


def activate_gradient_(
    y: Tensor, x: Tensor, slopes: Tensor, leak: float, other: Tensor | None,
    scale: Tensor | None, residual: Tensor | None,
) -> None:  # fmt: skip
    """y <- (x + other) * slopes * scale + residual: the gradient of activate_, and another."""
    v = times_slopes(x if other is None else x + other, slopes, leak)
    v = v if scale is None else v * scale
    y.copy_(v if residual is None else v + residual)
